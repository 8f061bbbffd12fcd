//! Whoever dies while it makes, clones, flattens or removes an image leaves something that a second one finishes: at
//! every point where the first one waits for an answer it is ended, without another word to the cluster, as `kill -9`
//! would.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::Poll;
use std::time::{Duration, Instant};

use bytes::Bytes;
use ceph_native::error::{Kind, Result};
use ceph_native::image::admin::{self, CloneFormat, CreateOptions};
use ceph_native::image::transfer::Writer;
use ceph_native::image::{Image, Maintenance, OpenOptions, Version};
use ceph_native::pool::Pool;
use proto::rbd::cls::SnapshotNamespace;

use crate::support::Ceph;
use crate::{full, on_new_clusters_with, with_client};

/// More operations than any of these takes.
const STEPS: usize = 400;

/// Lets a client of its own work until it has had so many answers. `None` if it was ended before it was done.
fn answered<T>(
    ceph: &Ceph,
    answers: usize,
    work: impl AsyncFnOnce(Pool) -> Result<T>,
) -> Option<Result<T>> {
    with_client(ceph, async |cluster| {
        let pool = cluster.pool("rbd").await.unwrap();
        let mut work = pin!(work(pool));
        let mut left = answers;
        poll_fn(|cx| match work.as_mut().poll(cx) {
            Poll::Ready(done) => Poll::Ready(Some(done)),
            Poll::Pending if left == 0 => Poll::Ready(None),
            Poll::Pending => {
                left -= 1;
                Poll::Pending
            }
        })
        .await
    })
    // What it left running ends with the runtime, in the middle of whatever it did.
}

/// The same, to the end.
fn finished<T>(ceph: &Ceph, work: impl AsyncFnOnce(Pool) -> Result<T>) -> Result<T> {
    answered(ceph, usize::MAX, work).unwrap()
}

/// Does it as often as it takes to end it at each of its steps, on an image of its own each time, which is prepared by
/// another client. Returns the images.
fn ended_at_each_step(
    ceph: &Ceph,
    name: &str,
    prepare: impl AsyncFn(&Pool, &str) -> Result<()>,
    work: impl AsyncFn(&Pool, &str) -> Result<()>,
) -> Vec<String> {
    let mut images = Vec::new();
    for step in 0..STEPS {
        let image = format!("{name}{step}");
        finished(ceph, async |pool| prepare(&pool, &image).await).unwrap();
        let done = answered(ceph, step, async |pool| work(&pool, &image).await);
        images.push(image);
        if let Some(done) = done {
            done.unwrap();
            eprintln!("{name}: {step} steps");
            assert!(step > 3, "{name} takes {step} steps");
            return images;
        }
    }
    panic!("{name} takes more than {STEPS} steps");
}

async fn nothing(_: &Pool, _: &str) -> Result<()> {
    Ok(())
}

async fn remove(pool: &Pool, image: &str) -> Result<()> {
    admin::remove(pool, image, &mut |_, _| {}).await
}

/// Removes what is left of images: by turns we and `rbd`.
fn removed(ceph: &Ceph, images: &[String]) {
    for (i, image) in images.iter().enumerate() {
        let begun = Instant::now();
        loop {
            let (code, said) = if i % 2 == 0 {
                let done = finished(ceph, async |pool| remove(&pool, image).await);
                let code = done.as_ref().map_or_else(|error| error.errno(), |()| 0);
                (code, format!("{done:?}"))
            } else {
                let ran = ceph.run("rbd", &["rm", "--no-progress", image]);
                (ran.code, ran.to_string())
            };
            match code {
                0 | 2 => break,
                // The watch of whoever died.
                16 if begun.elapsed() < Duration::from_secs(120) => {}
                _ => panic!("{image}: {said}"),
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }
}

/// What is there besides what belongs to a pool: nothing.
fn nothing_is_left(ceph: &Ceph, besides: &[&str]) {
    assert_eq!(ceph.rbd(&["ls"]).lines().collect::<Vec<_>>(), besides, "images");
    assert_eq!(ceph.rbd(&["trash", "ls", "--all"]), "");
    let kept = ["rbd_directory", "rbd_children", "rbd_info", "rbd_trash", "rbd_object_map"];
    let id_of = |image: &&str| {
        let info = ceph.run("rbd", &["info", "--format", "json", image]).json();
        info["id"].as_str().unwrap().to_owned()
    };
    let ids: Vec<_> = besides.iter().map(id_of).collect();
    let objects = ceph.rados(&["-p", "rbd", "ls"]);
    let ours = |object: &&str| {
        !kept.contains(object)
            && !ids.iter().any(|id| object.contains(id.as_str()))
            && !besides.iter().any(|image| *object == format!("rbd_id.{image}"))
    };
    assert_eq!(objects.lines().filter(ours).collect::<Vec<_>>(), Vec::<&str>::new());
    for directory in ["rbd_directory", "rbd_children"] {
        let keys = ceph.run("rados", &["-p", "rbd", "listomapkeys", directory]);
        let count = String::from_utf8_lossy(&keys.out).lines().count();
        // An image is there by its name and by its id.
        let expected = if directory == "rbd_directory" { 2 * besides.len() } else { 0 };
        assert!(keys.code == 2 || count == expected, "{directory} has {count} entries: {keys}");
    }
}

#[test]
fn an_image_that_was_half_made_or_half_removed_is_removed_by_a_second_one() {
    // Watches of the dead end sooner than in 30 s.
    on_new_clusters_with("osd client watch timeout = 2", |ceph| {
        let options =
            CreateOptions { stripe_unit: 65536, stripe_count: 2, ..CreateOptions::new(32 << 20) };
        let make =
            async |pool: &Pool, image: &str| admin::create(pool, image, &options).await.map(drop);
        let made = ended_at_each_step(ceph, "made", nothing, make);
        removed(ceph, &made);
        nothing_is_left(ceph, &[]);
        // Nothing of the names is taken.
        for image in &made {
            finished(ceph, async |pool| make(&pool, image).await).unwrap();
        }
        removed(ceph, &made);

        ceph.rbd(&["create", "--size", "32M", "parent"]);
        ceph.rbd(&["snap", "create", "--no-progress", "parent@snap"]);
        ceph.rbd(&["snap", "protect", "parent@snap"]);
        let (v1, v2) = ((CloneFormat::V1, "first"), (CloneFormat::V2, "second"));
        for (format, name) in if full() { vec![v1, v2] } else { vec![v2] } {
            let work = async |pool: &Pool, image: &str| clone(pool, image, format).await;
            let clones = ended_at_each_step(ceph, name, nothing, work);
            removed(ceph, &clones);
            assert_eq!(ceph.rbd(&["children", "parent@snap"]), "", "{format:?}");
            nothing_is_left(ceph, &["parent"]);
        }

        let (none, v1, v2) = ((None, "plain"), (Some(v1.0), "once"), (Some(v2.0), "twice"));
        for (format, name) in if full() { vec![none, v1, v2] } else { vec![v2] } {
            let prepare = async |pool: &Pool, image: &str| filled(pool, image, format).await;
            let images = ended_at_each_step(ceph, name, prepare, remove);
            removed(ceph, &images);
            nothing_is_left(ceph, &["parent"]);
        }
        ceph.rbd(&["snap", "unprotect", "parent@snap"]);
        ceph.rbd(&["snap", "rm", "--no-progress", "parent@snap"]);
        ceph.rbd(&["rm", "--no-progress", "parent"]);
        nothing_is_left(ceph, &[]);
    });
}

/// A clone can be opened whatever became of whoever flattened it, and nothing that it needed of its parent stays.
#[test]
fn a_clone_that_was_half_flattened_is_flattened_by_a_second_one() {
    on_new_clusters_with("osd client watch timeout = 2", |ceph| {
        let kept = ended_at_each_step(ceph, "kept", with_hidden_parent, async |pool, image| {
            admin::keep_for_clones(pool, &format!("{image}-parent")).await.map(drop)
        });
        for image in &kept {
            let parent = format!("{image}-parent");
            let keep = async |pool: &Pool| admin::keep_for_clones(pool, &parent).await.map(drop);
            once_the_dead_are_forgotten(ceph, keep).unwrap();
        }
        assert_eq!(ceph.rbd(&["trash", "ls", "--all"]).lines().count(), kept.len());
        removed(ceph, &kept);
        nothing_is_left(ceph, &[]);

        let prepare = async |pool: &Pool, image: &str| {
            with_hidden_parent(pool, image).await?;
            admin::keep_for_clones(pool, &format!("{image}-parent")).await.map(drop)
        };
        let clones = ended_at_each_step(ceph, "flat", prepare, flattened);
        for image in &clones {
            match once_the_dead_are_forgotten(ceph, async |pool| flattened(pool, image).await) {
                Err(error) if error.kind() == Kind::Invalid => {}
                done => done.unwrap_or_else(|error| panic!("{image}: {error}")),
            }
            let info = ceph.run("rbd", &["info", "--format", "json", image]).json();
            assert!(info["parent"].is_null(), "{info}");
            let bytes = ceph.run("rbd", &["export", "--no-progress", image, "-"]).out;
            assert!(bytes.len() == 32 << 20 && bytes[..4096].iter().all(|byte| *byte == 1));
        }
        removed(ceph, &clones);
        // Where it was cut short at the very end, the parent is removed as any other image in the trash.
        for id in finished(ceph, async |pool| admin::list_trash(&pool).await).unwrap().keys() {
            let remove =
                async |pool: &Pool| admin::remove_from_trash(pool, id, true, &mut |_, _| {}).await;
            once_the_dead_are_forgotten(ceph, remove).unwrap();
        }
        nothing_is_left(ceph, &[]);
    });
}

/// Does it to the end, once the watches of whoever died are over.
fn once_the_dead_are_forgotten(ceph: &Ceph, work: impl AsyncFn(&Pool) -> Result<()>) -> Result<()> {
    let begun = Instant::now();
    loop {
        match finished(ceph, async |pool| work(&pool).await) {
            Err(error)
                if error.kind() == Kind::Busy && begun.elapsed() < Duration::from_secs(120) => {}
            done => return done,
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

async fn flattened(pool: &Pool, name: &str) -> Result<()> {
    let image = Image::open(pool, name, &OpenOptions::default()).await?;
    let done = image.maintain(&Maintenance::Flatten, &mut |_, _| {}).await;
    image.close().await;
    done
}

/// Makes a clone of a snapshot that was removed since.
async fn with_hidden_parent(pool: &Pool, name: &str) -> Result<()> {
    let parent = format!("{name}-parent");
    filled(pool, &parent, None).await?;
    let image = Image::open(pool, &parent, &OpenOptions::default()).await?;
    let snap = Maintenance::SnapCreate {
        namespace: SnapshotNamespace::User,
        name: "snap".to_owned(),
        flags: 0,
    };
    image.maintain(&snap, &mut |_, _| {}).await?;
    let version = Version::Snapshot("snap".to_owned());
    let options = OpenOptions { read_only: true, version, ..OpenOptions::default() };
    let at = Image::open(pool, &parent, &options).await?;
    let like = admin::clone_like(&at, CreateOptions::new(0));
    admin::clone(&at, pool, name, &like, CloneFormat::V2).await?;
    at.close().await;
    let (namespace, name) = (SnapshotNamespace::User, "snap".to_owned());
    image.maintain(&Maintenance::SnapRemove { namespace, name }, &mut |_, _| {}).await?;
    image.close().await;
    Ok(())
}

async fn clone(pool: &Pool, image: &str, format: CloneFormat) -> Result<()> {
    let version = Version::Snapshot("snap".to_owned());
    let options = OpenOptions { read_only: true, version, ..OpenOptions::default() };
    let parent = Image::open(pool, "parent", &options).await?;
    let like = admin::clone_like(&parent, CreateOptions::new(0));
    let done = admin::clone(&parent, pool, image, &like, format).await;
    parent.close().await;
    done
}

/// Makes an image, or a clone, that has data in three of its objects.
async fn filled(pool: &Pool, name: &str, format: Option<CloneFormat>) -> Result<()> {
    match format {
        Some(format) => clone(pool, name, format).await?,
        None => drop(admin::create(pool, name, &CreateOptions::new(32 << 20)).await?),
    }
    let image = Image::open(pool, name, &OpenOptions::default()).await?;
    let mut writer = Writer::new(&image);
    for object in [0, 3, 7] {
        writer.write(object << 22, Bytes::from(vec![1; 4096])).await?;
    }
    writer.finish().await?;
    drop(writer);
    image.close().await;
    Ok(())
}
