//! Prints what `crushtool -i MAP --test --num-rep N --show-mappings` prints, computed by our own CRUSH: for comparing
//! the two, not for users. It knows the options that choose mappings: `--rule`, `--min-rule`, `--max-rule`,
//! `--num-rep`, `--min-rep`, `--max-rep`, `--x`, `--min-x`, `--max-x`, `--pool-id` and `--weight OSD W`.

use std::collections::BTreeMap;
use std::io::{self, BufWriter, Write};
use std::process::ExitCode;

use proto::crush::hash::hash32_2;
use proto::crush::{CrushMap, Scratch};

/// What is to be mapped.
#[derive(Debug, Default)]
pub(crate) struct Options {
    /// The compiled map's file.
    pub(crate) map: String,
    /// Which rules; all if not given.
    pub(crate) rules: Option<(i32, i32)>,
    /// For how many replicas.
    pub(crate) replicas: Option<(i32, i32)>,
    /// Which inputs; 0 to 1023 if not given.
    pub(crate) inputs: Option<(i32, i32)>,
    /// The pool whose placement seeds the inputs are to be; -1 for none.
    pub(crate) pool: Option<i32>,
    /// Reweights, 16.16 fixed point.
    pub(crate) weights: BTreeMap<i32, u32>,
}

impl Options {
    /// Reads the command line.
    ///
    /// # Errors
    /// Says which argument is missing or not understood.
    pub(crate) fn parse(args: impl IntoIterator<Item = String>) -> Result<Self, String> {
        let mut options = Self::default();
        let (mut rules, mut replicas, mut inputs) = ((-1, -1), (-1, -1), (-1, -1));
        let mut args = args.into_iter();
        while let Some(arg) = args.next() {
            if matches!(arg.as_str(), "--test" | "--show-mappings") {
                continue;
            }
            let value = args.next().ok_or_else(|| format!("{arg} needs a value"))?;
            let number = value.parse::<i32>().map_err(|error| format!("{arg} {value}: {error}"));
            match arg.as_str() {
                "-i" | "--infn" => options.map = value,
                "--rule" => rules = (number.clone()?, number?),
                "--min-rule" => rules.0 = number?,
                "--max-rule" => rules.1 = number?,
                "--num-rep" => replicas = (number.clone()?, number?),
                "--min-rep" => replicas.0 = number?,
                "--max-rep" => replicas.1 = number?,
                "--x" => inputs = (number.clone()?, number?),
                "--min-x" => inputs.0 = number?,
                "--max-x" => inputs.1 = number?,
                "--pool-id" => options.pool = Some(number?).filter(|pool| *pool != -1),
                "--weight" => {
                    let weight = args.next().ok_or("--weight needs a device and a weight")?;
                    let weight: f64 = weight.parse().map_err(|_| format!("bad weight {weight}"))?;
                    let weight = (weight as f32 * 65536.0).clamp(0.0, 65536.0);
                    options.weights.insert(number?, weight as u32);
                }
                _ => return Err(format!("unrecognized argument {arg}")),
            }
        }
        // As with crushtool, half a range is none.
        let range = |(min, max): (i32, i32)| (min >= 0 && max >= 0).then_some((min, max));
        (options.rules, options.replicas, options.inputs) =
            (range(rules), range(replicas), range(inputs));
        Ok(options)
    }

    /// Prints a line per rule, number of replicas and input.
    ///
    /// # Errors
    /// Only if `out` fails.
    pub(crate) fn print(&self, map: &CrushMap, out: &mut impl Write) -> io::Result<()> {
        // What no bucket holds is out.
        let mut weights = vec![0; map.max_devices as usize];
        for item in map.buckets.iter().flatten().flat_map(|bucket| &bucket.items) {
            if let Some(weight) = usize::try_from(*item).ok().and_then(|osd| weights.get_mut(osd)) {
                *weight = 0x10000;
            }
        }
        for (osd, given) in &self.weights {
            if let Some(weight) = usize::try_from(*osd).ok().and_then(|osd| weights.get_mut(osd)) {
                *weight = *given;
            }
        }
        if weights.iter().all(|weight| *weight == 0) {
            return Ok(());
        }
        // crushtool maps with the weight sets of pool 0, whatever pool it is told.
        let choose_args = map.choose_args_for_pool(0);
        let (min_rule, max_rule) = self.rules.unwrap_or((0, i32::MAX));
        let (min_rep, max_rep) = self.replicas.unwrap_or((1, 0));
        let (min_x, max_x) = self.inputs.unwrap_or((0, 1023));
        let mut scratch = Scratch::default();
        for rule in
            (min_rule as u32)..(map.rules.len() as u32).min((max_rule as u32).saturating_add(1))
        {
            for replicas in min_rep..=if map.rule(rule).is_some() { max_rep } else { 0 } {
                for x in min_x..=max_x {
                    let seed = self.pool.map_or(x as u32, |pool| hash32_2(x as u32, pool as u32));
                    let size = replicas as usize;
                    let items = map.do_rule(rule, seed, size, &weights, choose_args, &mut scratch);
                    write!(out, "CRUSH rule {rule} x {x} [")?;
                    for (index, item) in items.iter().enumerate() {
                        write!(out, "{}{item}", if index > 0 { "," } else { "" })?;
                    }
                    writeln!(out, "]")?;
                }
            }
        }
        Ok(())
    }
}

fn run() -> Result<(), String> {
    let options = Options::parse(std::env::args().skip(1))?;
    if options.replicas.is_none() {
        return Err("must specify --num-rep or both --min-rep and --max-rep".into());
    }
    let name = &options.map;
    let bytes = std::fs::read(name).map_err(|error| format!("cannot read {name:?}: {error}"))?;
    let map = CrushMap::from_bytes(&bytes).map_err(|error| format!("{name}: {error}"))?;
    let mut out = BufWriter::new(io::stdout().lock());
    options.print(&map, &mut out).and_then(|()| out.flush()).map_err(|error| error.to_string())
}

#[allow(dead_code, reason = "tests/crush_differential uses this file as a module")]
fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("crushtool: {error}");
            ExitCode::FAILURE
        }
    }
}
