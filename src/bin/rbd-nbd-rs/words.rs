//! The words of a command line in the order that `clap` takes them. `rbd` takes options before its verb, too.

use clap::Command;

/// Options with a value that come before a verb: they say which image or pool is meant.
const NAMES: [&str; 12] = [
    "-p",
    "--pool",
    "--namespace",
    "--image",
    "--image-id",
    "--snap",
    "--snap-id",
    "--dest",
    "--dest-pool",
    "--dest-namespace",
    "--dest-snap",
    "--path",
];

/// Moves options that come before a verb, or between the two words of one, to the end of the line.
pub(crate) fn in_order(mut words: Vec<String>, command: &Command) -> Vec<String> {
    let mut command = command;
    let mut at = 1;
    while command.has_subcommands() {
        let options = leading_options(words.get(at..).unwrap_or_default());
        let named = words.get(at + options).and_then(|word| command.find_subcommand(word));
        // Its own `--help`, and what it does not know: `clap` says so.
        let Some(verb) = named else { return words };
        words.get_mut(at..).unwrap_or_default().rotate_left(options);
        (command, at) = (verb, at + 1);
    }
    words
}

/// The first word of a command line that is neither an option nor the value of one: the verb, or what is in its place.
pub(crate) fn verb(words: &[String]) -> Option<&str> {
    let words = words.get(1..)?;
    words.get(leading_options(words)).map(String::as_str)
}

/// How many of the words are options and their values.
fn leading_options(words: &[String]) -> usize {
    let mut at = 0;
    while let Some(word) = words.get(at).filter(|word| word.starts_with('-')) {
        at += if NAMES.contains(&word.as_str()) { 2 } else { 1 };
    }
    at.min(words.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ordered(line: &str) -> String {
        let snap = Command::new("snap").subcommand(Command::new("ls").visible_alias("list"));
        let command = Command::new("rbd").subcommand(Command::new("import")).subcommand(snap);
        let words = line.split(' ').map(str::to_owned).collect();
        in_order(words, &command).join(" ")
    }

    #[test]
    fn options_before_a_verb_go_to_the_end() {
        for (line, expected) in [
            ("rbd import file image", "rbd import file image"),
            ("rbd -p import import file image", "rbd import file image -p import"),
            ("rbd --image a --no-progress import file", "rbd import file --image a --no-progress"),
            ("rbd --pool=p snap list i", "rbd snap list i --pool=p"),
            ("rbd -p p snap --image i ls", "rbd snap ls -p p --image i"),
            ("rbd snap ls --snap ls", "rbd snap ls --snap ls"),
            ("rbd --help", "rbd --help"),
            ("rbd -p", "rbd -p"),
            ("rbd -p p nothing", "rbd -p p nothing"),
        ] {
            assert_eq!(ordered(line), expected, "{line}");
        }
    }
}
