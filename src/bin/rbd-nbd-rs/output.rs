//! What a verb prints: text for people, or the same tree as JSON or XML for programs, laid out as `rbd` lays it out.

use std::fmt::Write as _;
use std::io::{self, Write as _};

use ceph_native::error::{Error, Kind, Result};
use clap::{Args, ValueEnum};
use jiff::tz::TimeZone;
use proto::types::UTime;

/// How to print.
#[derive(Args, Clone, Copy, Debug, Default)]
pub(crate) struct Format {
    /// Output format.
    #[arg(long, value_name = "FORMAT", default_value = "plain")]
    format: Kinds,
    /// Indent JSON and XML.
    #[arg(long)]
    pretty_format: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Kinds {
    #[default]
    Plain,
    Json,
    Xml,
}

/// A value with names, as JSON and XML have them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Tree {
    Text(String),
    Number(i128),
    Truth(bool),
    /// Named values, in order.
    Object(Vec<(&'static str, Self)>),
    /// The same, where users gave the names.
    Map(Vec<(String, Self)>),
    /// Values, each with what XML calls it.
    List(Vec<(&'static str, Self)>),
}

impl Tree {
    /// Values that XML calls all by one name.
    pub(crate) fn list<T: Into<Self>>(
        name: &'static str,
        items: impl IntoIterator<Item = T>,
    ) -> Self {
        Self::List(items.into_iter().map(|item| (name, item.into())).collect())
    }
}

impl From<&str> for Tree {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for Tree {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<u64> for Tree {
    fn from(number: u64) -> Self {
        Self::Number(number.into())
    }
}

impl Format {
    /// Whether it is for people.
    pub(crate) fn is_plain(self) -> bool {
        self.format == Kinds::Plain
    }

    /// Prints in the format that was asked for. `name` is what XML calls the whole.
    pub(crate) fn print(
        self,
        name: &'static str,
        tree: impl FnOnce() -> Tree,
        plain: impl FnOnce() -> String,
    ) -> Result<()> {
        print(&self.render(name, tree, plain)?)
    }

    /// Prints JSON that comes from elsewhere.
    pub(crate) fn print_json(
        self,
        value: &serde_json::Value,
        plain: impl FnOnce() -> String,
    ) -> Result<()> {
        match (self.format, self.pretty_format) {
            (Kinds::Plain, _) => print(&plain()),
            (Kinds::Json, true) => print(&format!("{value:#}\n")),
            (Kinds::Json, false) => print(&format!("{value}\n")),
            (Kinds::Xml, _) => Err(Error::new(Kind::Invalid, "this is plain or JSON only")),
        }
    }

    /// What [`Format::print`] prints.
    pub(crate) fn render(
        self,
        name: &'static str,
        tree: impl FnOnce() -> Tree,
        plain: impl FnOnce() -> String,
    ) -> Result<String> {
        if self.pretty_format && self.is_plain() {
            let what = "--pretty-format only works when --format is json or xml";
            return Err(Error::new(Kind::Invalid, what));
        }
        let mut out = String::new();
        let indent = |width| Indent { width: if self.pretty_format { width } else { 0 }, depth: 0 };
        match self.format {
            Kinds::Plain => return Ok(plain()),
            Kinds::Json => json(&tree(), indent(4), &mut out),
            Kinds::Xml => xml(name, &tree(), indent(1), &mut out),
        }
        out.push('\n');
        Ok(out)
    }
}

/// Writes to standard output. That nobody reads it any more is no failure.
pub(crate) fn print(text: &str) -> Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Error::new(Kind::Os(5), "standard output").with_source(error))
        }
        _ => Ok(()),
    }
}

#[derive(Clone, Copy)]
struct Indent {
    /// Spaces per level; 0 means everything on one line.
    width: usize,
    depth: usize,
}

impl Indent {
    fn deeper(self) -> Self {
        Self { depth: self.depth + 1, ..self }
    }

    fn line(self, out: &mut String) {
        if self.width > 0 {
            out.push('\n');
            self.spaces(out);
        }
    }

    fn spaces(self, out: &mut String) {
        out.extend(std::iter::repeat_n(' ', self.width * self.depth));
    }
}

fn json(tree: &Tree, indent: Indent, out: &mut String) {
    match tree {
        Tree::Text(text) => json_text(text, out),
        // Writing to a string does not fail.
        Tree::Number(number) => drop(write!(out, "{number}")),
        Tree::Truth(truth) => drop(write!(out, "{truth}")),
        Tree::Object(fields) => {
            json_block(('{', '}'), fields, indent, out, |(name, value), out| {
                json_text(name, out);
                out.push_str(if indent.width > 0 { ": " } else { ":" });
                json(value, indent.deeper(), out);
            })
        }
        Tree::Map(fields) => json_block(('{', '}'), fields, indent, out, |(name, value), out| {
            json_text(name, out);
            out.push_str(if indent.width > 0 { ": " } else { ":" });
            json(value, indent.deeper(), out);
        }),
        Tree::List(items) => json_block(('[', ']'), items, indent, out, |(_, item), out| {
            json(item, indent.deeper(), out);
        }),
    }
}

fn json_block<T>(
    (open, close): (char, char),
    items: &[T],
    indent: Indent,
    out: &mut String,
    mut item: impl FnMut(&T, &mut String),
) {
    out.push(open);
    for (i, value) in items.iter().enumerate() {
        if i > 0 {
            out.push(',');
        }
        indent.deeper().line(out);
        item(value, out);
    }
    if !items.is_empty() {
        indent.line(out);
    }
    out.push(close);
}

fn json_text(text: &str, out: &mut String) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            c if c < ' ' || c == '\x7f' => drop(write!(out, "\\u{:04x}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push('"');
}

fn xml(name: &str, tree: &Tree, indent: Indent, out: &mut String) {
    // A tag has no spaces.
    let name = &name.replace(' ', "_");
    let text = match tree {
        Tree::Text(text) => text.clone(),
        Tree::Number(number) => number.to_string(),
        Tree::Truth(truth) => truth.to_string(),
        Tree::Object(items) | Tree::List(items) => {
            return xml_block(name, items.iter().map(|(name, item)| (*name, item)), indent, out);
        }
        Tree::Map(items) => {
            let items = items.iter().map(|(name, item)| (name.as_str(), item));
            return xml_block(name, items, indent, out);
        }
    };
    if indent.width > 0 {
        indent.spaces(out);
    }
    let _ = write!(out, "<{name}>");
    for c in text.chars() {
        match c {
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '&' => out.push_str("&amp;"),
            '\'' => out.push_str("&apos;"),
            '"' => out.push_str("&quot;"),
            c => out.push(c),
        }
    }
    let _ = write!(out, "</{name}>");
    if indent.width > 0 {
        out.push('\n');
    }
}

fn xml_block<'a>(
    name: &str,
    items: impl Iterator<Item = (&'a str, &'a Tree)>,
    indent: Indent,
    out: &mut String,
) {
    let end = if indent.width > 0 { "\n" } else { "" };
    indent.spaces(out);
    let _ = write!(out, "<{name}>{end}");
    for (name, value) in items {
        xml(name, value, indent.deeper(), out);
    }
    indent.spaces(out);
    let _ = write!(out, "</{name}>{end}");
}

/// Which side of its column a table's cell keeps to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Left,
    Right,
}

/// Rows under headings, in columns two spaces apart. Headings are on the left.
pub(crate) fn table(columns: &[(&str, Side)], rows: &[Vec<String>]) -> String {
    let width = |i: usize, heading: &str| {
        let cells = rows.iter().filter_map(|row| row.get(i));
        let longest = cells.map(|cell| cell.chars().count()).max().unwrap_or(0);
        longest.max(heading.len())
    };
    let widths: Vec<_> = (0..).zip(columns).map(|(i, (heading, _))| width(i, heading)).collect();
    let mut out = String::new();
    for (i, ((heading, _), width)) in columns.iter().zip(&widths).enumerate() {
        let separator = if i + 1 < columns.len() { "  " } else { "\n" };
        // Writing to a string does not fail.
        let _ = write!(out, "{heading:<width$}{separator}");
    }
    for row in rows {
        for (i, ((cell, (_, side)), width)) in row.iter().zip(columns).zip(&widths).enumerate() {
            let _ = match side {
                Side::Left => write!(out, "{cell:<width$}"),
                Side::Right => write!(out, "{cell:>width$}"),
            };
            if i + 1 < columns.len() {
                out.push_str("  ");
            }
        }
        out.push('\n');
    }
    out
}

/// A time as `ctime` prints it: in the local time zone, like `Mon Nov 23 15:35:57 2026`.
pub(crate) fn local_time(time: UTime) -> String {
    time_in(TimeZone::system(), time)
}

fn time_in(zone: TimeZone, time: UTime) -> String {
    let timestamp = jiff::Timestamp::from_second(time.sec.into()).unwrap_or_default();
    timestamp.to_zoned(zone).strftime("%a %b %e %H:%M:%S %Y").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree() -> Tree {
        Tree::Object(vec![
            ("name", "a\"<".into()),
            ("size", 7.into()),
            ("features", Tree::list("feature", ["layering", "striping"])),
            ("flags", Tree::List(Vec::new())),
        ])
    }

    fn render(format: Kinds, pretty_format: bool) -> String {
        Format { format, pretty_format }.render("image", tree, || unreachable!()).unwrap()
    }

    /// The layouts are those of `rbd` 16.2.15.
    #[test]
    fn json_and_xml() {
        assert_eq!(
            render(Kinds::Json, false),
            "{\"name\":\"a\\\"<\",\"size\":7,\"features\":[\"layering\",\"striping\"],\"flags\":[]}\n"
        );
        assert_eq!(
            render(Kinds::Json, true),
            "{\n    \"name\": \"a\\\"<\",\n    \"size\": 7,\n    \"features\": [\n        \"layering\",\n        \
             \"striping\"\n    ],\n    \"flags\": []\n}\n"
        );
        assert_eq!(
            render(Kinds::Xml, false),
            "<image><name>a&quot;&lt;</name><size>7</size><features><feature>layering</feature>\
             <feature>striping</feature></features><flags></flags></image>\n"
        );
        assert_eq!(
            render(Kinds::Xml, true),
            "<image>\n <name>a&quot;&lt;</name>\n <size>7</size>\n <features>\n  <feature>layering</feature>\n  \
             <feature>striping</feature>\n </features>\n <flags>\n </flags>\n</image>\n\n"
        );
    }

    #[test]
    fn times_are_of_the_zone() {
        let time = UTime { sec: 1_793_545_200, nsec: 0 };
        assert_eq!(time_in(TimeZone::UTC, time), "Sun Nov  1 15:00:00 2026");
        // The zones of the system are found, where it has any.
        if std::path::Path::new("/usr/share/zoneinfo/Asia/Kathmandu").exists() {
            let zone = TimeZone::get("Asia/Kathmandu").unwrap();
            assert_eq!(time_in(zone, time), "Sun Nov  1 20:45:00 2026");
        }
    }

    /// As `rbd ls -l` printed it.
    #[test]
    fn a_table() {
        let columns = [
            ("NAME", Side::Left),
            ("SIZE", Side::Right),
            ("PARENT", Side::Left),
            ("FMT", Side::Right),
            ("PROT", Side::Left),
            ("LOCK", Side::Left),
        ];
        let row = |cells: [&str; 6]| cells.map(str::to_owned).to_vec();
        let rows = [
            row(["a", "1 GiB", "", "2", "", ""]),
            row(["a@s1", "1 GiB", "", "2", "yes", ""]),
            row(["c", "10 MiB", "", "2", "", "excl"]),
            row(["cl", "1 GiB", "rbd/a@s1", "2", "", ""]),
        ];
        assert_eq!(
            table(&columns, &rows),
            "NAME  SIZE    PARENT    FMT  PROT  LOCK\n\
             a      1 GiB              2            \n\
             a@s1   1 GiB              2  yes       \n\
             c     10 MiB              2        excl\n\
             cl     1 GiB  rbd/a@s1    2            \n"
        );
    }
}
