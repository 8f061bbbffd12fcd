//! The programs in `examples/` do what they say.

#[path = "../../examples/exclusive.rs"]
#[expect(dead_code, reason = "its `main`")]
mod exclusive;
#[path = "../../examples/read_write.rs"]
#[expect(dead_code, reason = "its `main`")]
mod read_write;
#[path = "../../examples/snapshot_clone.rs"]
#[expect(dead_code, reason = "its `main`")]
mod snapshot_clone;
#[path = "../../examples/watch.rs"]
#[expect(dead_code, reason = "its `main`")]
mod watch;

use ceph_native::image::Image;

use crate::ops::with_pool;

#[test]
fn they_do_what_they_say() {
    with_pool(async |ceph, pool| {
        read_write::run(&pool, "disk").await.unwrap();
        let file = ceph.dir().join("disk");
        ceph.rbd(&["export", "--no-progress", "disk", file.to_str().unwrap()]);
        let bytes = std::fs::read(&file).unwrap();
        let blocks = bytes.chunks(4096).take(5).map(|block| (block[0], block[4095]));
        assert_eq!(blocks.collect::<Vec<_>>(), [(0, 0), (1, 1), (2, 2), (3, 3), (0, 0)]);

        snapshot_clone::run(&pool, "disk").await.unwrap();
        assert!(ceph.rbd(&["snap", "ls", "disk"]).contains("monday"));
        assert!(!ceph.rbd(&["info", "disk-clone"]).contains("parent"));
        let file = ceph.dir().join("clone");
        ceph.rbd(&["export", "--no-progress", "disk-clone", file.to_str().unwrap()]);
        assert!(std::fs::read(&file).unwrap() == bytes);

        exclusive::run(&pool, "disk").await.unwrap();
        assert_eq!(ceph.lock_owner("disk"), None);

        let resized = async {
            let open = async || !ceph.rbd(&["status", "disk"]).contains("none");
            while !open().await {
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            }
            let mut resize = ceph.command("rbd");
            resize.args(["resize", "--no-progress", "--size", "2G", "disk"]);
            tokio::task::spawn_blocking(move || resize.status().unwrap()).await.unwrap()
        };
        let (watched, resized) = tokio::join!(watch::run(&pool, "disk"), resized);
        watched.unwrap();
        assert!(resized.success());
        let image = Image::open(&pool, "disk", &Default::default()).await.unwrap();
        assert_eq!(image.size(), 2 << 30);
        image.close().await;
    });
}
