//! Commands to the monitor: those that `ceph`, `rbd` and librbd use, and what it takes to look around.

use std::net::SocketAddr;
use std::time::Duration;

use proto::types::{AddrType, EntityAddr, OsdId, PoolId, UTime};
use serde_json::{Value, json};

use super::map::NewPool;
use super::{Done, Monitor, Shared, TOTAL_KIB};
use crate::errno::{EINVAL, ENOENT, EPERM};
use crate::wire::Now;

type Outcome = Result<Done, (i32, String)>;
type Run = fn(&mut Monitor, Now, &Value, &mut Shared<'_>) -> Outcome;

/// A command: its words, its arguments as the `ceph` program is told them, what it does.
struct Command {
    prefix: &'static str,
    arguments: &'static str,
    help: &'static str,
    run: Run,
}

/// Arguments are `name:type`, with `?` behind those that may be left out and choices in parentheses.
const COMMANDS: &[Command] = &[
    Command { prefix: "status", arguments: "", help: "show cluster status", run: status },
    Command { prefix: "health", arguments: "", help: "show cluster health", run: health },
    Command { prefix: "fsid", arguments: "", help: "show cluster FSID", run: fsid },
    Command { prefix: "versions", arguments: "", help: "show versions of daemons", run: versions },
    Command { prefix: "version", arguments: "", help: "show the monitor's version", run: version },
    Command { prefix: "df", arguments: "detail?(detail)", help: "show space", run: df },
    Command { prefix: "osd dump", arguments: "", help: "print the OSD map", run: osd_dump },
    Command { prefix: "osd ls", arguments: "", help: "show all OSD ids", run: osd_ls },
    Command {
        prefix: "osd stat",
        arguments: "",
        help: "print how many OSDs are up",
        run: osd_stat,
    },
    Command {
        prefix: "osd map",
        arguments: "pool:CephPoolname object:CephString nspace?:CephString",
        help: "find an object",
        run: osd_map,
    },
    Command {
        prefix: "osd down",
        arguments: "ids:CephString+",
        help: "mark OSDs down",
        run: osd_down,
    },
    Command {
        prefix: "osd out",
        arguments: "ids:CephString+",
        help: "mark OSDs out",
        run: osd_out,
    },
    Command { prefix: "osd in", arguments: "ids:CephString+", help: "mark OSDs in", run: osd_in },
    Command {
        prefix: "osd pool ls",
        arguments: "detail?(detail)",
        help: "list pools",
        run: pool_ls,
    },
    Command { prefix: "osd lspools", arguments: "", help: "list pools", run: lspools },
    Command {
        prefix: "osd pool create",
        arguments: "pool:CephPoolname pg_num?:CephInt pgp_num?:CephInt",
        help: "create a pool",
        run: pool_create,
    },
    Command {
        prefix: "osd pool rm",
        arguments: "pool:CephPoolname pool2?:CephPoolname yes_i_really_really_mean_it?:CephBool",
        help: "remove a pool",
        run: pool_rm,
    },
    Command {
        prefix: "osd pool get",
        arguments: "pool:CephPoolname var:CephString",
        help: "get a pool's parameter",
        run: pool_get,
    },
    Command {
        prefix: "osd pool application enable",
        arguments: "pool:CephPoolname app:CephString yes_i_really_mean_it?:CephBool",
        help: "say what a pool is for",
        run: application_enable,
    },
    Command {
        prefix: "osd pool application get",
        arguments: "pool?:CephPoolname",
        help: "show what pools are for",
        run: application_get,
    },
    Command {
        prefix: "osd blocklist",
        arguments: "blocklistop(add|rm) addr:CephEntityAddr expire?:CephFloat",
        help: "cut an address off, or let it in again",
        run: blocklist,
    },
    Command {
        prefix: "osd blacklist",
        arguments: "blacklistop(add|rm) addr:CephEntityAddr expire?:CephFloat",
        help: "the old name of blocklist",
        run: blocklist,
    },
    Command {
        prefix: "osd blocklist ls",
        arguments: "",
        help: "show what is cut off",
        run: blocklist_ls,
    },
    Command {
        prefix: "osd blacklist ls",
        arguments: "",
        help: "the old name of blocklist ls",
        run: blocklist_ls,
    },
    Command {
        prefix: "osd blocklist clear",
        arguments: "",
        help: "let everybody in",
        run: blocklist_clear,
    },
    Command {
        prefix: "config set",
        arguments: "who:CephString name:CephString value:CephString",
        help: "set an option of clients",
        run: config_set,
    },
    Command { prefix: "mon dump", arguments: "", help: "print the monitors", run: mon_dump },
    Command {
        prefix: "get_command_descriptions",
        arguments: "",
        help: "list commands",
        run: descriptions,
    },
];

/// Runs a command, which is JSON.
pub(super) fn run(monitor: &mut Monitor, now: Now, line: &str, shared: &mut Shared<'_>) -> Outcome {
    let arguments: Value = serde_json::from_str(line)
        .map_err(|error| (EINVAL, format!("the command is not JSON: {error}")))?;
    let prefix = arguments["prefix"].as_str().unwrap_or_default();
    match COMMANDS.iter().find(|command| command.prefix == prefix) {
        Some(command) => (command.run)(monitor, now, &arguments, shared),
        None => Err((EINVAL, format!("devcluster does not know the command \"{prefix}\""))),
    }
}

/// As JSON if that was asked for, else as text.
fn show(arguments: &Value, value: &Value, text: impl FnOnce() -> String) -> Outcome {
    Ok(Done::text(match arguments["format"].as_str() {
        Some("json") => value.to_string(),
        Some("json-pretty") => format!("{value:#}"),
        _ => text(),
    }))
}

fn string<'a>(arguments: &'a Value, name: &str) -> Result<&'a str, (i32, String)> {
    arguments[name].as_str().ok_or_else(|| (EINVAL, format!("the command needs {name}")))
}

fn pool_of(monitor: &Monitor, arguments: &Value) -> Result<PoolId, (i32, String)> {
    let name = string(arguments, "pool")?;
    let unknown = || (ENOENT, format!("unrecognized pool '{name}'"));
    monitor.map.map().pool_id(name).ok_or_else(unknown)
}

fn osd_counts(monitor: &Monitor) -> (usize, usize, usize) {
    let map = monitor.map.map();
    let osds = || (0..map.max_osd() as i32).map(OsdId).filter(|osd| map.exists(*osd));
    let up = osds().filter(|osd| map.is_up(*osd)).count();
    let is_in = osds().filter(|osd| map.weight(*osd).is_some_and(|weight| weight > 0)).count();
    (osds().count(), up, is_in)
}

fn status(monitor: &mut Monitor, now: Now, arguments: &Value, shared: &mut Shared<'_>) -> Outcome {
    let _ = now;
    let (osds, up, is_in) = osd_counts(monitor);
    let map = monitor.map.map();
    let usage = map.pools.keys().map(|pool| shared.store.usage(*pool));
    let (objects, bytes) =
        usage.fold((0, 0), |sum, usage| (sum.0 + usage.objects, sum.1 + usage.bytes));
    let health = if up == osds { "HEALTH_OK" } else { "HEALTH_WARN" };
    let value = json!({
        "fsid": map.fsid.to_string(),
        "health": { "status": health, "checks": {}, "mutes": [] },
        "quorum": [0],
        "quorum_names": ["a"],
        "osdmap": {
            "epoch": map.epoch.0, "num_osds": osds, "num_up_osds": up, "num_in_osds": is_in,
        },
        "pgmap": {
            "num_pgs": map.pools.values().map(|pool| pool.pg_num).sum::<u32>(),
            "num_pools": map.pools.len(), "num_objects": objects, "data_bytes": bytes,
        },
    });
    show(arguments, &value, || {
        format!(
            "  cluster:\n    id:     {}\n    health: {health}\n\n  services:\n    mon: 1 daemons, quorum a\n    \
             osd: {osds} osds: {up} up, {is_in} in\n\n  data:\n    pools:   {} pools\n    objects: {objects} objects, \
             {bytes} B\n",
            map.fsid,
            map.pools.len(),
        )
    })
}

fn health(monitor: &mut Monitor, _: Now, arguments: &Value, _: &mut Shared<'_>) -> Outcome {
    let (osds, up, _) = osd_counts(monitor);
    let health = if up == osds { "HEALTH_OK" } else { "HEALTH_WARN" };
    show(arguments, &json!({ "status": health, "checks": {}, "mutes": [] }), || health.to_owned())
}

fn fsid(monitor: &mut Monitor, _: Now, arguments: &Value, _: &mut Shared<'_>) -> Outcome {
    let fsid = monitor.map.map().fsid.to_string();
    show(arguments, &json!({ "fsid": fsid }), || fsid.clone())
}

const VERSION: &str =
    concat!("ceph version 16.2.15 (devcluster ", env!("CARGO_PKG_VERSION"), ") pacific (stable)");

fn version(_: &mut Monitor, _: Now, arguments: &Value, _: &mut Shared<'_>) -> Outcome {
    show(arguments, &json!({ "version": VERSION }), || VERSION.to_owned())
}

fn versions(monitor: &mut Monitor, _: Now, arguments: &Value, _: &mut Shared<'_>) -> Outcome {
    let (osds, ..) = osd_counts(monitor);
    let value = json!({
        "mon": { VERSION: 1 }, "mgr": {}, "osd": { VERSION: osds }, "mds": {},
        "overall": { VERSION: osds + 1 },
    });
    show(arguments, &value, || format!("{value:#}"))
}

fn df(monitor: &mut Monitor, _: Now, arguments: &Value, shared: &mut Shared<'_>) -> Outcome {
    let map = monitor.map.map();
    let mut used = 0;
    let mut text = String::from("--- POOLS ---\nPOOL  ID  PGS  STORED  OBJECTS\n");
    let mut pools = Vec::new();
    for (id, pool) in &map.pools {
        let usage = shared.store.usage(*id);
        let name = map.pool_name(*id).unwrap_or_default();
        used += usage.bytes;
        text += &format!("{name}  {id}  {}  {} B  {}\n", pool.pg_num, usage.bytes, usage.objects);
        pools.push(json!({
            "name": name, "id": id.0,
            "stats": {
                "stored": usage.bytes, "objects": usage.objects, "kb_used": usage.bytes.div_ceil(1024),
                "bytes_used": usage.bytes, "percent_used": 0.0, "max_avail": TOTAL_KIB * 1024 - used,
            },
        }));
    }
    let value = json!({
        "stats": {
            "total_bytes": TOTAL_KIB * 1024, "total_avail_bytes": TOTAL_KIB * 1024 - used,
            "total_used_bytes": used, "total_used_raw_bytes": used, "total_used_raw_ratio": 0.0,
        },
        "pools": pools,
    });
    show(arguments, &value, || text)
}

fn pool_json(monitor: &Monitor, id: PoolId) -> Value {
    let map = monitor.map.map();
    let Some(pool) = map.pool(id) else { return Value::Null };
    let applications: serde_json::Map<_, _> =
        pool.applications.keys().map(|app| (app.clone(), json!({}))).collect();
    json!({
        "pool": id.0, "pool_id": id.0, "pool_name": map.pool_name(id), "type": 1,
        "size": pool.size, "min_size": pool.min_size, "crush_rule": pool.crush_rule,
        "pg_num": pool.pg_num, "pg_placement_num": pool.pgp_num, "flags": pool.flags,
        "snap_seq": pool.snap_seq.0, "last_change": pool.last_change.0.to_string(),
        "application_metadata": applications,
    })
}

fn osd_dump(monitor: &mut Monitor, _: Now, arguments: &Value, _: &mut Shared<'_>) -> Outcome {
    let map = monitor.map.map();
    let mut text = format!("epoch {}\nfsid {}\n", map.epoch, map.fsid);
    let mut osds = Vec::new();
    let mut pools = Vec::new();
    for (id, pool) in &map.pools {
        let name = map.pool_name(*id).unwrap_or_default();
        text +=
            &format!("pool {id} '{name}' replicated size {} pg_num {}\n", pool.size, pool.pg_num);
        pools.push(pool_json(monitor, *id));
    }
    text += &format!("max_osd {}\n", map.max_osd());
    for osd in (0..map.max_osd() as i32).map(OsdId).filter(|osd| map.exists(*osd)) {
        let up = map.is_up(osd);
        let is_in = map.weight(osd).is_some_and(|weight| weight > 0);
        let addrs = map.addrs(osd).map(ToString::to_string).unwrap_or_default();
        let (up_word, in_word) = (if up { "up" } else { "down" }, if is_in { "in" } else { "out" });
        text += &format!("osd.{osd} {up_word} {in_word} {addrs}\n");
        osds.push(json!({
            "osd": osd.0, "up": u8::from(up), "in": u8::from(is_in), "public_addrs": addrs,
        }));
    }
    let blocklist: serde_json::Map<_, _> =
        (map.blocklist.iter()).map(|(addr, until)| (bare(addr), json!(until.sec))).collect();
    let value = json!({
        "epoch": map.epoch.0, "fsid": map.fsid.to_string(), "max_osd": map.max_osd(),
        "require_osd_release": "pacific", "pools": pools, "osds": osds, "blocklist": blocklist,
    });
    show(arguments, &value, || text)
}

fn osd_ls(monitor: &mut Monitor, _: Now, arguments: &Value, _: &mut Shared<'_>) -> Outcome {
    let map = monitor.map.map();
    let ids: Vec<i32> = (0..map.max_osd() as i32).filter(|osd| map.exists(OsdId(*osd))).collect();
    show(arguments, &json!(ids), || ids.iter().map(|id| format!("{id}\n")).collect())
}

fn osd_stat(monitor: &mut Monitor, _: Now, arguments: &Value, _: &mut Shared<'_>) -> Outcome {
    let (osds, up, is_in) = osd_counts(monitor);
    let epoch = monitor.map.view.epoch.0;
    let value = json!({
        "epoch": epoch, "num_osds": osds, "num_up_osds": up, "num_in_osds": is_in,
    });
    show(arguments, &value, || format!("{osds} osds: {up} up, {is_in} in; epoch: e{epoch}"))
}

fn osd_map(monitor: &mut Monitor, _: Now, arguments: &Value, _: &mut Shared<'_>) -> Outcome {
    let pool = pool_of(monitor, arguments)?;
    let object = string(arguments, "object")?;
    let nspace = arguments["nspace"].as_str().unwrap_or_default();
    let map = monitor.map.map();
    let target = map
        .target(pool, nspace.as_bytes(), object.as_bytes())
        .ok_or_else(|| (ENOENT, "no such pool".to_owned()))?;
    let acting: Vec<i32> = map
        .mapping(target.spg.pg)
        .map(|mapping| mapping.acting.iter().map(|osd| osd.0).collect())
        .unwrap_or_default();
    let value = json!({
        "epoch": map.epoch.0, "pool": map.pool_name(pool), "pool_id": pool.0, "objname": object,
        "raw_pgid": format!("{pool}.{:x}", target.hash), "pgid": target.spg.pg.to_string(),
        "up": acting, "up_primary": acting.first(), "acting": acting, "acting_primary": acting.first(),
    });
    show(arguments, &value, || {
        let primary = acting.first().map_or(-1, |osd| *osd);
        format!(
            "osdmap e{} pool '{}' ({pool}) object '{object}' -> pg {pool}.{:x} ({}) -> up ({acting:?}, p{primary}) \
             acting ({acting:?}, p{primary})",
            map.epoch,
            map.pool_name(pool).unwrap_or_default(),
            target.hash,
            target.spg.pg,
        )
    })
}

fn ids(monitor: &Monitor, arguments: &Value) -> Result<Vec<OsdId>, (i32, String)> {
    let given = arguments["ids"].as_array().cloned().unwrap_or_default();
    let parse = |id: &Value| {
        let text = id.as_str().map_or_else(|| id.to_string(), str::to_owned);
        let osd = text.trim_start_matches("osd.").parse().map(OsdId).ok();
        osd.filter(|osd| monitor.map.map().exists(*osd))
            .ok_or_else(|| (ENOENT, format!("osd.{text} does not exist")))
    };
    given.iter().map(parse).collect()
}

fn osd_down(
    monitor: &mut Monitor,
    now: Now,
    arguments: &Value,
    shared: &mut Shared<'_>,
) -> Outcome {
    for osd in ids(monitor, arguments)? {
        if let Some(change) = monitor.map.osd_down(osd) {
            monitor.commit(change, now, shared.actions);
        }
    }
    Ok(Done::status("marked down"))
}

fn osd_out(monitor: &mut Monitor, now: Now, arguments: &Value, shared: &mut Shared<'_>) -> Outcome {
    for osd in ids(monitor, arguments)? {
        let change = monitor.map.osd_in(osd, false);
        monitor.commit(change, now, shared.actions);
    }
    Ok(Done::status("marked out"))
}

fn osd_in(monitor: &mut Monitor, now: Now, arguments: &Value, shared: &mut Shared<'_>) -> Outcome {
    for osd in ids(monitor, arguments)? {
        let change = monitor.map.osd_in(osd, true);
        monitor.commit(change, now, shared.actions);
    }
    Ok(Done::status("marked in"))
}

fn pool_ls(monitor: &mut Monitor, _: Now, arguments: &Value, _: &mut Shared<'_>) -> Outcome {
    let map = monitor.map.map();
    let names: Vec<&str> = map.pool_names.values().map(String::as_str).collect();
    let value = match arguments["detail"].as_str() {
        Some(_) => map.pools.keys().map(|pool| pool_json(monitor, *pool)).collect(),
        None => json!(names),
    };
    show(arguments, &value, || names.join("\n"))
}

fn lspools(monitor: &mut Monitor, _: Now, arguments: &Value, _: &mut Shared<'_>) -> Outcome {
    let names = &monitor.map.map().pool_names;
    let value: Vec<Value> =
        names.iter().map(|(id, name)| json!({ "poolnum": id.0, "poolname": name })).collect();
    show(arguments, &json!(value), || {
        names.iter().map(|(id, name)| format!("{id} {name}\n")).collect()
    })
}

fn pool_create(
    monitor: &mut Monitor,
    now: Now,
    arguments: &Value,
    shared: &mut Shared<'_>,
) -> Outcome {
    let name = string(arguments, "pool")?;
    let pg_num = arguments["pg_num"].as_u64().unwrap_or(8).clamp(1, 4096) as u32;
    let new = NewPool { name, pg_num, size: 1, application: None };
    // A pool that is there already is as good as a new one, so that the command can be repeated.
    let Some((_, change)) = monitor.map.create_pool(&new, now.wall) else {
        return Ok(Done::status(format!("pool '{name}' already exists")));
    };
    monitor.commit(change, now, shared.actions);
    Ok(Done::status(format!("pool '{name}' created")))
}

fn pool_rm(monitor: &mut Monitor, now: Now, arguments: &Value, shared: &mut Shared<'_>) -> Outcome {
    let pool = pool_of(monitor, arguments)?;
    let name = string(arguments, "pool")?;
    let sure = &arguments["yes_i_really_really_mean_it"];
    let sure = sure.as_bool() == Some(true) || sure.as_str().is_some();
    if arguments["pool2"].as_str() != Some(name) || !sure {
        return Err((
            EPERM,
            format!(
                "to remove pool '{name}' and all its data, give its name twice and --yes-i-really-really-mean-it"
            ),
        ));
    }
    monitor.remove_pool(pool, now, shared);
    Ok(Done::status(format!("pool '{name}' removed")))
}

fn pool_get(monitor: &mut Monitor, _: Now, arguments: &Value, _: &mut Shared<'_>) -> Outcome {
    let id = pool_of(monitor, arguments)?;
    let variable = string(arguments, "var")?;
    let all = pool_json(monitor, id);
    let value = match variable {
        "pgp_num" => all["pg_placement_num"].clone(),
        variable => all[variable].clone(),
    };
    if value.is_null() {
        return Err((EINVAL, format!("devcluster's pools have no '{variable}'")));
    }
    let object = json!({ "pool": all["pool_name"], "pool_id": id.0, variable: value });
    show(arguments, &object, || format!("{variable}: {value}"))
}

fn application_enable(
    monitor: &mut Monitor,
    now: Now,
    arguments: &Value,
    shared: &mut Shared<'_>,
) -> Outcome {
    let id = pool_of(monitor, arguments)?;
    let app = string(arguments, "app")?.to_owned();
    let status = format!("enabled application '{app}' on pool '{}'", string(arguments, "pool")?);
    let change = monitor.map.change_pool(id, |pool| {
        pool.applications.entry(app).or_default();
    });
    if let Some(change) = change {
        monitor.commit(change, now, shared.actions);
    }
    Ok(Done::status(status))
}

fn application_get(
    monitor: &mut Monitor,
    _: Now,
    arguments: &Value,
    _: &mut Shared<'_>,
) -> Outcome {
    let map = monitor.map.map();
    let applications = |id: PoolId| pool_json(monitor, id)["application_metadata"].clone();
    let value = match arguments["pool"].as_str() {
        Some(_) => applications(pool_of(monitor, arguments)?),
        None => (map.pool_names.iter())
            .map(|(id, name)| (name.clone(), applications(*id)))
            .collect::<serde_json::Map<_, _>>()
            .into(),
    };
    show(arguments, &value, || format!("{value:#}"))
}

/// An address as commands take and show it: without its type.
fn bare(addr: &EntityAddr) -> String {
    addr.addr.map_or_else(|| "-".to_owned(), |socket| format!("{socket}/{}", addr.nonce))
}

fn parse_addr(text: &str) -> Option<EntityAddr> {
    let text =
        ["v1:", "v2:", "any:"].iter().find_map(|kind| text.strip_prefix(kind)).unwrap_or(text);
    let (socket, nonce) = text.rsplit_once('/').unwrap_or((text, "0"));
    let addr: SocketAddr = match socket.parse() {
        Ok(addr) => addr,
        Err(_) => SocketAddr::new(socket.trim_matches(['[', ']']).parse().ok()?, 0),
    };
    Some(EntityAddr { kind: AddrType::ANY, nonce: nonce.parse().ok()?, addr: Some(addr) })
}

fn blocklist(
    monitor: &mut Monitor,
    now: Now,
    arguments: &Value,
    shared: &mut Shared<'_>,
) -> Outcome {
    let text = string(arguments, "addr")?;
    let addr = parse_addr(text)
        .ok_or_else(|| (EINVAL, format!("'{text}' is not an address like 10.0.0.1:0/123")))?;
    let op = arguments["blocklistop"].as_str().or_else(|| arguments["blacklistop"].as_str());
    match op {
        Some("add") => {
            let expire = &arguments["expire"];
            let seconds = expire.as_f64().or_else(|| expire.as_str()?.parse().ok());
            let lasts = Duration::try_from_secs_f64(seconds.unwrap_or(3600.0)).unwrap_or_default();
            let until = UTime::from(Duration::from(now.wall) + lasts);
            let change = monitor.map.blocklist(addr, Some(until));
            monitor.commit(change, now, shared.actions);
            Ok(Done::status(format!("blocklisting {} until {}", bare(&addr), until.sec)))
        }
        Some("rm") if monitor.map.map().blocklist.contains_key(&addr) => {
            let change = monitor.map.blocklist(addr, None);
            monitor.commit(change, now, shared.actions);
            Ok(Done::status(format!("un-blocklisting {}", bare(&addr))))
        }
        Some("rm") => Ok(Done::status(format!("{} isn't blocklisted", bare(&addr)))),
        _ => Err((EINVAL, "blocklist takes add or rm".to_owned())),
    }
}

fn blocklist_ls(monitor: &mut Monitor, _: Now, arguments: &Value, _: &mut Shared<'_>) -> Outcome {
    let blocklist = &monitor.map.map().blocklist;
    let value: Vec<Value> = (blocklist.iter())
        .map(|(addr, until)| json!({ "addr": bare(addr), "until": until.sec.to_string() }))
        .collect();
    let done = show(arguments, &json!(value), || {
        blocklist.iter().map(|(addr, until)| format!("{} {}\n", bare(addr), until.sec)).collect()
    })?;
    Ok(Done { status: format!("listed {} entries", blocklist.len()), ..done })
}

fn blocklist_clear(monitor: &mut Monitor, now: Now, _: &Value, shared: &mut Shared<'_>) -> Outcome {
    let mut change = monitor.map.change();
    change.old_blocklist = monitor.map.map().blocklist.keys().copied().collect();
    monitor.commit(change, now, shared.actions);
    Ok(Done::status("removed all blocklist entries"))
}

fn config_set(monitor: &mut Monitor, _: Now, arguments: &Value, _: &mut Shared<'_>) -> Outcome {
    let name = string(arguments, "name")?.replace(' ', "_");
    let value = string(arguments, "value")?.to_owned();
    monitor.config.insert(name, value);
    Ok(Done::status(""))
}

fn mon_dump(monitor: &mut Monitor, _: Now, arguments: &Value, _: &mut Shared<'_>) -> Outcome {
    let fsid = monitor.map.map().fsid.to_string();
    let value =
        json!({ "epoch": 1, "fsid": fsid, "mons": [{ "rank": 0, "name": "a" }], "quorum": [0] });
    show(arguments, &value, || format!("epoch 1\nfsid {fsid}\n0: mon.a"))
}

/// What the `ceph` program reads its command line by.
fn descriptions(_: &mut Monitor, _: Now, _: &Value, _: &mut Shared<'_>) -> Outcome {
    let describe = |(number, command): (usize, &Command)| {
        let words = command.prefix.split(' ').map(|word| json!(word));
        let arguments = command.arguments.split_whitespace().map(argument);
        let signature: Vec<Value> = words.chain(arguments).collect();
        let description = json!({
            "sig": signature, "help": command.help, "module": "mon", "perm": "rw", "flags": 0,
        });
        (format!("cmd{number:03}"), description)
    };
    let all: serde_json::Map<_, _> = COMMANDS.iter().enumerate().map(describe).collect();
    Ok(Done::text(Value::from(all).to_string()))
}

fn argument(text: &str) -> Value {
    let (name, kind) = match text.split_once(['(', ':']) {
        Some((name, kind)) => (name, kind.trim_end_matches(')')),
        None => (text, "CephString"),
    };
    let optional = name.ends_with('?');
    let name = name.trim_end_matches('?');
    let mut value = if text.contains('(') {
        json!({ "name": name, "type": "CephChoices", "strings": kind })
    } else {
        json!({ "name": name, "type": kind.trim_end_matches('+') })
    };
    if kind.ends_with('+') {
        value["n"] = json!("N");
    }
    if optional {
        value["req"] = json!("false");
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_ceph_writes_them() {
        for text in ["127.0.0.1:0/123", "v1:127.0.0.1:0/123", "[::1]:6789/7"] {
            let addr = parse_addr(text).unwrap();
            assert_eq!(bare(&addr), text.trim_start_matches("v1:"));
        }
        assert_eq!(parse_addr("10.0.0.1").map(|addr| bare(&addr)), Some("10.0.0.1:0/0".to_owned()));
        assert_eq!(parse_addr("nonsense"), None);
    }

    #[test]
    fn arguments_are_described() {
        let description = json!({ "name": "x", "type": "CephInt", "req": "false" });
        assert_eq!(argument("x?:CephInt"), description);
        let description = json!({ "name": "op", "type": "CephChoices", "strings": "add|rm" });
        assert_eq!(argument("op(add|rm)"), description);
        assert_eq!(
            argument("ids:CephString+"),
            json!({ "name": "ids", "type": "CephString", "n": "N" })
        );
    }
}
