//! Prints what Ceph's `osdmaptool` prints of a map, to compare the two line by line:
//!
//! ```text
//! osdmaptool MAP --test-map-pgs-dump-all [--pool ID]
//! osdmaptool MAP --test-map-object NAME [--pool ID]
//! osdmaptool MAP --dump json                        (what `ceph osd dump -f json` prints of what we keep)
//! ```
//!
//! A check of `proto::osdmap`, not a verb for users.

pub(crate) mod dump;

use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::process::ExitCode;

use proto::osdmap::{NO_OSD, OsdMap};
use proto::types::{OsdId, PgId, PoolId};

/// What is asked of a map.
#[derive(Default)]
pub(crate) struct Args {
    pub(crate) file: String,
    pub(crate) dump_json: bool,
    pub(crate) dump_all: bool,
    pub(crate) object: Option<String>,
    pub(crate) pool: Option<PoolId>,
}

#[allow(dead_code, reason = "tests/live/osdmap.rs uses this file as a module")]
fn main() -> ExitCode {
    let args = match parse_args(std::env::args().skip(1)) {
        Ok(args) => args,
        Err(why) => {
            eprintln!("osdmaptool: {why}");
            eprintln!(
                "usage: osdmaptool MAP [--test-map-pgs-dump-all] [--test-map-object NAME] [--pool ID] [--dump json]"
            );
            return ExitCode::FAILURE;
        }
    };
    eprintln!("osdmaptool: osdmap file '{}'", args.file);
    let map = std::fs::read(&args.file)
        .map_err(|error| error.to_string())
        .and_then(|bytes| OsdMap::decode(&bytes).map_err(|error| error.to_string()));
    let map = match map {
        Ok(map) => map,
        Err(why) => {
            eprintln!("osdmaptool: {}: {why}", args.file);
            return ExitCode::FAILURE;
        }
    };
    let mut out = String::new();
    if let Err(pool) = run(&args, &map, &mut out) {
        eprintln!("There is no pool {pool}");
        return ExitCode::FAILURE;
    }
    match io::stdout().write_all(out.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn parse_args(mut given: impl Iterator<Item = String>) -> Result<Args, String> {
    let mut args = Args::default();
    while let Some(arg) = given.next() {
        let mut value = || given.next().ok_or_else(|| format!("{arg} needs a value"));
        match arg.replace('_', "-").as_str() {
            "--test-map-pgs-dump-all" => args.dump_all = true,
            "--dump" if value()? == "json" => args.dump_json = true,
            "--test-map-object" => args.object = Some(value()?),
            "--pool" => {
                let id = value()?;
                args.pool = Some(PoolId(id.parse().map_err(|_| format!("no pool id: {id}"))?));
            }
            _ if arg.starts_with("--") || !args.file.is_empty() => {
                return Err(format!("unknown argument {arg}"));
            }
            _ => args.file = arg,
        }
    }
    match args.file.is_empty() {
        true => Err("which map?".into()),
        false => Ok(args),
    }
}

/// Does what is asked; the error is a pool that is not there.
pub(crate) fn run(args: &Args, map: &OsdMap, out: &mut String) -> Result<(), PoolId> {
    if args.dump_json {
        line(out, format_args!("{:#}", dump::dump(map)));
    }
    let mut only = args.pool;
    if let Some(name) = &args.object {
        let pool = only.unwrap_or_else(|| {
            out.push_str("osdmaptool: assuming pool 1 (use --pool to override)\n");
            PoolId(1)
        });
        only = Some(pool);
        let target = map.target(pool, b"", name.as_bytes()).ok_or(pool)?;
        let acting = map.mapping(target.spg.pg).map_or(&[][..], |mapping| &mapping.acting);
        line(out, format_args!(" object '{name}' -> {} -> {}", target.spg.pg, list(acting)));
    }
    if args.dump_all {
        dump_all(map, only, out)?;
    }
    Ok(())
}

fn dump_all(map: &OsdMap, only: Option<PoolId>, out: &mut String) -> Result<(), PoolId> {
    if let Some(pool) = only.filter(|id| map.pool(*id).is_none()) {
        return Err(pool);
    }
    let mut tally = Tally {
        count: vec![0; map.max_osd()],
        first: vec![0; map.max_osd()],
        primary: vec![0; map.max_osd()],
        sizes: vec![0; 256],
    };
    for (&id, pool) in map.pools.iter().filter(|(id, _)| only.is_none_or(|only| only == **id)) {
        line(out, format_args!("pool {id} pg_num {}", pool.pg_num));
        for seed in 0..pool.pg_num {
            let pg = PgId { pool: id, seed };
            let raw = map.raw_osds(pool, pg);
            let first = raw.iter().copied().find(|osd| *osd != NO_OSD);
            let Some(placed) = map.mapping(pg) else { continue };
            line(
                out,
                format_args!(
                    "{pg} raw ({}, p{}) up ({}, p{}) acting ({}, p{})",
                    list(&raw),
                    number(first),
                    list(&placed.up),
                    number(placed.up_primary),
                    list(&placed.acting),
                    number(placed.acting_primary),
                ),
            );
            tally.add(&placed.acting, placed.acting_primary);
        }
    }
    tally.print(map, out);
    Ok(())
}

/// How many groups each OSD has.
struct Tally {
    count: Vec<u64>,
    first: Vec<u64>,
    primary: Vec<u64>,
    sizes: Vec<u64>,
}

impl Tally {
    fn add(&mut self, acting: &[OsdId], primary: Option<OsdId>) {
        self.sizes[acting.len()] += 1;
        let add = |counts: &mut Vec<u64>, osd: OsdId| {
            if let Some(count) = usize::try_from(osd.0).ok().and_then(|i| counts.get_mut(i)) {
                *count += 1;
            }
        };
        acting.iter().for_each(|osd| add(&mut self.count, *osd));
        acting.first().into_iter().for_each(|osd| add(&mut self.first, *osd));
        primary.into_iter().for_each(|osd| add(&mut self.primary, osd));
    }

    fn print(&self, map: &OsdMap, out: &mut String) {
        let weighed = |osd: OsdId| {
            let is_in = map.exists(osd) && map.weight(osd).is_some_and(|weight| weight > 0);
            crush_weight(map, osd).filter(|weight| is_in && *weight > 0)
        };
        let fixed = |weight: u32| general(f64::from(weight) / f64::from(0x10000));
        line(out, format_args!("#osd\tcount\tfirst\tprimary\tc wt\twt"));
        let ids = (0..map.max_osd() as i32).map(OsdId);
        let counted: Vec<(OsdId, u64)> = ids
            .filter_map(|osd| {
                let weight = weighed(osd)?;
                let i = osd.0 as usize;
                line(
                    out,
                    format_args!(
                        "osd.{osd}\t{}\t{}\t{}\t{}\t{}",
                        self.count[i],
                        self.first[i],
                        self.primary[i],
                        fixed(weight),
                        fixed(map.weight(osd).unwrap_or(0)),
                    ),
                );
                Some((osd, self.count[i]))
            })
            .collect();
        let n = counted.len() as f64;
        let total: u64 = counted.iter().map(|(_, count)| count).sum();
        let average = total.checked_div(counted.len() as u64).unwrap_or(0);
        let squares = counted.iter().map(|(_, count)| average.abs_diff(*count).pow(2) as f64);
        let deviation = (squares.sum::<f64>() / n).sqrt();
        let expected = (total as f64 / n * (1.0 - 1.0 / n)).sqrt();
        line(out, format_args!(" in {n}"));
        line(
            out,
            format_args!(
                " avg {average} stddev {} ({}x) (expected {} {}x))",
                general(deviation),
                general(deviation / average as f64),
                general(expected),
                general(expected / average as f64),
            ),
        );
        // The first of the least and of the most.
        let some = || counted.iter().filter(|(_, count)| *count > 0);
        if let Some((osd, count)) = some().min_by_key(|(_, count)| *count) {
            line(out, format_args!(" min osd.{osd} {count}"));
        }
        if let Some((osd, count)) = some().rev().max_by_key(|(_, count)| *count) {
            line(out, format_args!(" max osd.{osd} {count}"));
        }
        for (size, count) in self.sizes.iter().enumerate().filter(|(_, count)| **count > 0) {
            line(out, format_args!("size {size}\t{count}"));
        }
    }
}

/// An OSD's weight in the first bucket that has it.
fn crush_weight(map: &OsdMap, osd: OsdId) -> Option<u32> {
    map.crush.buckets.iter().flatten().find_map(|bucket| {
        let position = bucket.items.iter().position(|item| *item == osd.0)?;
        Some(bucket.item_weight(position))
    })
}

fn line(out: &mut String, text: std::fmt::Arguments<'_>) {
    let _ = writeln!(out, "{text}"); // writing to a String does not fail
}

/// A set; a hole is the number that it has in encodings, 2147483647.
fn list(osds: &[OsdId]) -> String {
    let osds: Vec<String> = osds.iter().map(ToString::to_string).collect();
    format!("[{}]", osds.join(","))
}

fn number(osd: Option<OsdId>) -> i32 {
    osd.map_or(-1, |osd| osd.0)
}

/// A number as C's `%g` prints it: six significant digits, no trailing zeros.
fn general(x: f64) -> String {
    if x.is_nan() {
        return "-nan".into(); // what 0/0 is on x86
    }
    if x.is_infinite() || x == 0.0 {
        return x.to_string();
    }
    let scientific = format!("{x:.5e}");
    let Some((digits, exponent)) = scientific.split_once('e') else { return scientific };
    let exponent: i32 = exponent.parse().unwrap_or(0);
    let trim = |text: &str| match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text.to_owned(),
    };
    match exponent {
        -4..6 => trim(&format!("{x:.*}", (5 - exponent) as usize)),
        _ => {
            let sign = if exponent < 0 { '-' } else { '+' };
            format!("{}e{sign}{:02}", trim(digits), exponent.abs())
        }
    }
}
