//! The text of a `ceph.conf`: sections, `name = value` lines, comments, continuation lines, quotes
//! (`doc/rados/configuration/ceph-conf.rst`, and where that is silent, what `ceph-conf` of release 16 does).

use std::collections::BTreeMap;

/// A configuration file, read but not yet interpreted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct ConfFile {
    sections: BTreeMap<String, BTreeMap<String, Setting>>,
}

/// One line's value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Setting {
    pub(super) value: String,
    /// Where its name stood, counted from 1.
    pub(super) line: usize,
}

/// A line that is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SyntaxError {
    /// Counted from 1.
    pub(super) line: usize,
    pub(super) expected: &'static str,
}

/// The one spelling of an option's name: `mon host`, `mon_host` and `mon-host` are the same.
pub(super) fn normal_name(name: &str) -> String {
    let words = name.split([' ', '\t', '_', '-']).filter(|word| !word.is_empty());
    words.collect::<Vec<_>>().join("_")
}

impl ConfFile {
    /// Reads a file's text. A section that comes again adds to the first; the last of several lines with one name wins.
    pub(super) fn parse(text: &str) -> Result<Self, SyntaxError> {
        let mut file = Self::default();
        let mut section: Option<String> = None;
        for (line, content) in logical_lines(text) {
            let content = content.trim_matches([' ', '\t']);
            if content.is_empty() || content.starts_with(['#', ';']) {
                continue;
            }
            if let Some(heading) = content.strip_prefix('[') {
                let name = parse_heading(heading)
                    .ok_or(SyntaxError { line, expected: "a section, like [global]" })?;
                file.sections.entry(name.clone()).or_default();
                section = Some(name);
                continue;
            }
            let (name, value) = content
                .split_once('=')
                .filter(|(name, _)| !name.contains(['#', ';', '[']))
                .ok_or(SyntaxError { line, expected: "name = value" })?;
            let name = normal_name(name);
            if name.is_empty() {
                return Err(SyntaxError { line, expected: "a name before the =" });
            }
            let value = parse_value(value.trim_start_matches([' ', '\t']))
                .ok_or(SyntaxError { line, expected: "nothing after a closing quote" })?;
            // What stands before the first section belongs to none, and only Ceph's oldest files have it.
            let section = section.get_or_insert_with(|| "global".to_owned());
            let settings = file.sections.entry(section.clone()).or_default();
            settings.insert(name, Setting { value, line });
        }
        Ok(file)
    }

    /// The setting of an option in the first of the sections that has it.
    pub(super) fn get<'a>(&self, sections: &[&'a str], name: &str) -> Option<(&'a str, &Setting)> {
        sections
            .iter()
            .find_map(|section| Some((*section, self.sections.get(*section)?.get(name)?)))
    }
}

/// Lines with those that end in a backslash joined to the next, each with the number of its first line. A backslash in
/// a comment joins nothing.
fn logical_lines(text: &str) -> impl Iterator<Item = (usize, String)> {
    let mut lines = (1..).zip(text.lines());
    std::iter::from_fn(move || {
        let (number, line) = lines.next()?;
        let mut logical = line.to_owned();
        while continues(&logical) {
            logical.pop();
            let Some((_, next)) = lines.next() else { break };
            logical.push_str(next);
        }
        Some((number, logical))
    })
}

fn continues(line: &str) -> bool {
    let mut escaped = false;
    for c in line.chars() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '#' | ';' => return false,
            _ => {}
        }
    }
    escaped
}

/// The name of a section whose `[` is already taken.
fn parse_heading(rest: &str) -> Option<String> {
    let (name, tail) = rest.split_once(']')?;
    let tail = tail.trim_start_matches([' ', '\t']);
    let ends = tail.is_empty() || tail.starts_with(['#', ';']);
    (ends && !name.is_empty()).then(|| name.to_owned())
}

/// A value without its quotes, backslashes and trailing comment; `None` if something follows its closing quote.
fn parse_value(text: &str) -> Option<String> {
    let quote = text.chars().next().filter(|c| matches!(c, '"' | '\''));
    let mut value = String::with_capacity(text.len());
    let mut characters = text.chars().skip(usize::from(quote.is_some()));
    loop {
        match (characters.next(), quote) {
            (Some('\\'), _) => value.extend(characters.next()),
            (Some(c), Some(quote)) if c == quote => {
                let rest: String = characters.collect();
                let rest = rest.trim_start_matches([' ', '\t']);
                let ends = rest.is_empty() || rest.starts_with(['#', ';']);
                return ends.then(|| value.trim().to_owned());
            }
            (None, Some(_)) => return None,
            (Some('#' | ';') | None, None) => return Some(value.trim().to_owned()),
            (Some(c), _) => value.push(c),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mon_host(text: &str) -> Result<Option<String>, SyntaxError> {
        let file = ConfFile::parse(text)?;
        let sections = ["client.admin", "client", "global"];
        Ok(file.get(&sections, "mon_host").map(|(_, setting)| setting.value.clone()))
    }

    /// Each of these was put to `ceph-conf --show-config-value mon_host` of Ceph 16.2.15, which said the same.
    #[test]
    fn reads_what_ceph_conf_reads() {
        for (text, value) in [
            ("[global]\nmon host = 'a\\#b c' # hi\n", "a#b c"),
            ("[global]\nmon host = a;b\n", "a"),
            ("[global]\nmon host = a\\;b\\q\n", "a;bq"),
            ("[global]\nmon host = 1.2.3.4, \\\n   5.6.7.8\n", "1.2.3.4,    5.6.7.8"),
            ("[global]\nmon_host = x \"quoted\" y\n", "x \"quoted\" y"),
            ("mon host = 1\n", "1"),
            ("[global] # c\n  ; c\n\n\t mon\thost\t=\t1  \n", "1"),
            ("[global]\r\nmon host = 1\r\n", "1"),
            ("[global]\nmon host = \"\"\n", ""),
            ("[global]\nmon   host=1\nmon_host = 2\n", "2"),
        ] {
            assert_eq!(mon_host(text), Ok(Some(value.to_owned())), "{text:?}");
        }
        assert_eq!(mon_host("[ global ]\nmon host = 1\n"), Ok(None));
        assert_eq!(
            mon_host(
                "[global]\nmon host = 1\n[client]\nmon host=2\n[client.admin]\nmon_host=3\n\
                 [client.admin]\nmon host = 4\n"
            ),
            Ok(Some("4".to_owned()))
        );
    }

    #[test]
    fn names_the_line_that_is_wrong() {
        for (text, line) in [
            ("[global]\nnonsense\nmon host = 1\n", 2),
            ("[global]\nmon host = x\n[global\nkeyring=2\n", 3),
            ("[global]\nmon host = 'x\n", 2),
            ("[global]\nmon host = 'x' y\n", 2),
            ("[global]\n\n = y\n", 3),
            ("[]\n", 1),
            ("[global]\na = 1 \\\n 2\nmon host\n", 4),
        ] {
            let error = mon_host(text).expect_err(text);
            assert_eq!(error.line, line, "{text:?}");
        }
    }

    #[test]
    fn a_file_may_end_without_a_line_end_and_a_comment_is_not_continued() {
        assert_eq!(mon_host("[global]\nmon host = 1"), Ok(Some("1".to_owned())));
        assert_eq!(mon_host("[global]\n# x \\\nmon host = 1"), Ok(Some("1".to_owned())));
        assert_eq!(mon_host("[global]\nmon host = 1 \\"), Ok(Some("1".to_owned())));
    }
}
