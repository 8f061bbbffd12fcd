//! Results as a plot: SVG by hand, readable on a light and on a dark page.

use std::fmt::Write as _;

use crate::contender::Sample;
use crate::{Results, report};

const WIDTH: f64 = 900.0;
const BAR: f64 = 13.0;
const GAP: f64 = 14.0;
const TOP: f64 = 62.0;
const LABELS: f64 = 132.0;
const PANEL: f64 = 320.0;

/// Two panels of bars, grouped by workload: CPU time per operation, and throughput as a multiple of librbd's.
pub(crate) fn svg(results: &Results) -> String {
    let contenders = results.rows[0].1.len();
    let group = contenders as f64 * BAR + GAP;
    let height = TOP + results.rows.len() as f64 * group + 6.0;
    let mut svg = format!(
        "<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {WIDTH} {height}' \
         font-family='sans-serif' font-size='11'>\n\
         <style>text{{fill:#333}}.b0{{fill:#0a7d5a}}.b1{{fill:#8a8f98}}.b2{{fill:#c2772e}}.axis{{stroke:#888}}\n\
         @media(prefers-color-scheme:dark){{text{{fill:#ddd}}.b0{{fill:#2fc296}}.b2{{fill:#e09a55}}}}</style>\n\
         <text x='8' y='16' font-size='13' font-weight='bold'>{}</text>\n",
        results.cluster
    );
    let mut x = LABELS;
    for (index, (name, _)) in results.rows[0].1.iter().enumerate() {
        writeln!(svg, "<rect class='b{index}' x='{x}' y='26' width='10' height='10'/>").unwrap();
        writeln!(svg, "<text x='{}' y='35'>{name}</text>", x + 14.0).unwrap();
        x += 40.0 + 7.0 * name.len() as f64;
    }
    for (index, (workload, _)) in results.rows.iter().enumerate() {
        let y = TOP + index as f64 * group + contenders as f64 * BAR / 2.0 + 4.0;
        writeln!(
            svg,
            "<text x='{}' y='{y:.0}' text-anchor='end'>{}</text>",
            LABELS - 8.0,
            workload.name
        )
        .unwrap();
    }
    let right = LABELS + PANEL + 80.0;
    panel(&mut svg, results, LABELS, "CPU µs per operation (less is better)", 1, |s, _| s.cpu_us);
    panel(&mut svg, results, right, "IOPS, × librbd (more is better)", 2, |s, librbd| {
        s.iops / librbd.iops
    });
    svg + "</svg>\n"
}

fn panel(
    svg: &mut String,
    results: &Results,
    left: f64,
    title: &str,
    digits: usize,
    value: fn(&Sample, &Sample) -> f64,
) {
    let values: Vec<Vec<f64>> = results
        .rows
        .iter()
        .map(|(_, samples)| {
            samples.iter().map(|(_, s)| value(s, &report::librbd(samples))).collect()
        })
        .collect();
    let largest = values.iter().flatten().fold(0.0_f64, |a, b| a.max(*b));
    let group = values[0].len() as f64 * BAR + GAP;
    writeln!(svg, "<text x='{left}' y='54' font-weight='bold'>{title}</text>").unwrap();
    for (row, values) in values.iter().enumerate() {
        let top = TOP + row as f64 * group;
        for (index, value) in values.iter().enumerate() {
            let (y, width) = (top + index as f64 * BAR, value / largest * PANEL);
            let bar = format!("x='{left}' y='{y:.1}' width='{width:.1}' height='{}'", BAR - 2.0);
            writeln!(svg, "<rect class='b{index}' {bar}/>").unwrap();
            let (x, y) = (left + width + 4.0, y + BAR - 4.0);
            writeln!(svg, "<text x='{x:.1}' y='{y:.1}' font-size='9'>{value:.digits$}</text>")
                .unwrap();
        }
        let bottom = top + group - GAP;
        writeln!(
            svg,
            "<line class='axis' x1='{left}' x2='{left}' y1='{top:.1}' y2='{bottom:.1}'/>"
        )
        .unwrap();
    }
}
