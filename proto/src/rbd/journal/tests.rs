//! Events as librbd 16.2.15 recorded them: a clone was written to, and then changed by each verb of `rbd`.

use super::*;
use crate::denc::decode;

fn unhex(hex: &str) -> Vec<u8> {
    let digits: Vec<_> =
        hex.chars().filter(|c| *c != ' ').map(|c| c.to_digit(16).unwrap() as u8).collect();
    digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect()
}

#[track_caller]
fn known(hex: &str, event: Event) {
    let bytes = unhex(hex);
    let entry: EventEntry = decode(&bytes, "event").unwrap();
    assert_eq!(entry.event, event);
    assert_eq!(entry.to_bytes(), bytes, "{event:?}");
    for len in 0..bytes.len() {
        assert!(decode::<EventEntry>(&bytes[..len], "event").is_err(), "{len} bytes are enough");
    }
}

#[test]
fn events_are_librbds() {
    known("0501040000000200000001010800000063be086b1815c320", Event::Flush);
    let data = Bytes::from_static(&[b'g'; 16]);
    known(
        "0501280000000100000000000000000000001000000000000000100000006767676767676767676767676767676701010800000063be\
         086bc3e1d320",
        Event::Write { offset: 0, data },
    );
    known(
        "05011800000003000000010000000000000001000000000000000000000001010800000063be086bdf1fdc28",
        Event::Finish { op: 1, result: 0 },
    );
    let text = |text: &str| text.to_owned();
    let user = || SnapshotNamespace::User;
    for (hex, what) in [
        (
            "05011d000000040000000100000000000000030000006f6e650101040000000000000001010800000063be086bcfc1f526",
            Operation::SnapCreate(user(), text("one")),
        ),
        (
            "05011d000000070000000100000000000000030000006f6e650101040000000000000001010800000063be086b0cc6562e",
            Operation::SnapProtect(user(), text("one")),
        ),
        (
            "05011d000000080000000100000000000000030000006f6e650101040000000000000001010800000063be086bab517234",
            Operation::SnapUnprotect(user(), text("one")),
        ),
        (
            "0501220000000600000001000000000000000300000074776f0700000000000000030000006f6e6501010800000063be086b07\
             25573a",
            Operation::SnapRename { snap: SnapId(7), old: text("one"), new: text("two") },
        ),
        (
            "05011d0000000900000001000000000000000300000074776f0101040000000000000001010800000064be086b2c0d1506",
            Operation::SnapRollback(user(), text("two")),
        ),
        (
            "05011d0000000500000001000000000000000300000074776f0101040000000000000001010800000064be086b02421109",
            Operation::SnapRemove(user(), text("two")),
        ),
        (
            "0501140000000e0000000100000000000000050000000000000001010800000064be086bcf39100d",
            Operation::SnapLimit(5),
        ),
        (
            "0501140000000b0000000100000000000000000090000000000001010800000064be086ba6180510",
            Operation::Resize(9 << 20),
        ),
        (
            "05011c000000100000000100000000000000030000006b65790500000076616c756501010800000064be086b683e2213",
            Operation::MetadataSet(text("key"), text("value")),
        ),
        (
            "050113000000110000000100000000000000030000006b657901010800000064be086b0c0b3f16",
            Operation::MetadataRemove(text("key")),
        ),
        ("05010c0000000c000000010000000000000001010800000064be086bd458081a", Operation::Flatten),
        (
            "0501150000000f000000010000000000000018000000000000000001010800000064be086baba8b91c",
            Operation::UpdateFeatures(0x18, false),
        ),
        (
            "0501170000000a00000001000000000000000700000072656e616d656401010800000064be086b3d3d8e1f",
            Operation::Rename(text("renamed")),
        ),
    ] {
        known(hex, Event::Begin { op: 1, what });
    }
}

#[test]
fn other_events_come_back_as_they_went() {
    let data = || Bytes::from_static(b"data");
    for event in [
        Event::Discard { offset: 1, length: 2, granularity: 0 },
        Event::Discard { offset: 1, length: 2, granularity: 65536 },
        Event::WriteSame { offset: 1, length: 8, data: data() },
        Event::CompareAndWrite { offset: 1, compare: data(), data: data() },
    ] {
        let entry = EventEntry { event, time: UTime { sec: 1, nsec: 2 } };
        assert_eq!(decode::<EventEntry>(&entry.to_bytes(), "event"), Ok(entry));
    }
    let write = Event::Write { offset: 0, data: data() };
    let write = EventEntry { event: write, time: UTime::default() }.to_bytes();
    assert_eq!(write.len(), WRITE_OVERHEAD + 4);
    // Of a promotion, or of a later release.
    let other = unhex("0501040000000d00000001010800000063be086b1815c320");
    assert_eq!(decode::<EventEntry>(&other, "event").unwrap().event, Event::Other(13));
    // A discard before Nautilus: of whole objects.
    let old = unhex(
        "040115000000 00000000 0000000000000000 0000100000000000 01 010108000000 0000000000000000",
    );
    let event = decode::<EventEntry>(&old, "event").unwrap().event;
    assert_eq!(event, Event::Discard { offset: 0, length: 1 << 20, granularity: u32::MAX });
}

#[test]
fn entries_are_librbds() {
    let hex = "93975853265941310100000000000000000100000000000000180000000501040000000200000001010800000063be086b1815c3\
               202b7a7b7c";
    let bytes = unhex(hex);
    let mut input = Bytes::from([&bytes[..], &bytes].concat());
    let entry = Entry::take(&mut input).unwrap().unwrap();
    assert_eq!((entry.tag, entry.number, entry.event.len()), (1, 0, 24));
    assert_eq!(entry.to_bytes(), bytes);
    assert_eq!(bytes.len(), entry.event.len() + ENTRY_OVERHEAD);
    assert_eq!(Entry::take(&mut input), Ok(Some(entry)));
    assert_eq!(Entry::take(&mut input), Ok(None));
    for len in 0..bytes.len() {
        let mut input = Bytes::copy_from_slice(&bytes[..len]);
        assert_eq!(Entry::take(&mut input), Ok(None), "{len} bytes are enough");
        assert_eq!(input.len(), len, "nothing is taken");
    }
    for at in 0..bytes.len() {
        let mut damaged = bytes.clone();
        damaged[at] ^= 0x40;
        // What is too long by its length may be so: the rest would come.
        assert!(!matches!(Entry::take(&mut Bytes::from(damaged)), Ok(Some(_))), "byte {at}");
    }
}

#[test]
fn clients_and_tags_are_librbds() {
    let client = unhex("01010d00000000000000000000000000000000");
    let image = ClientData::Image { tag_class: 0, resync_requested: false };
    assert_eq!(decode::<ClientData>(&client, "client"), Ok(image.clone()));
    assert_eq!(image.to_bytes(), client);
    let tag = unhex("00000000000000000 10d0000000000000001000000 00000000");
    let data = TagData { is_committed: true, tag: 13, entry: 1, ..TagData::default() };
    assert_eq!(decode::<TagData>(&tag, "tag"), Ok(data.clone()));
    assert_eq!(data.to_bytes(), tag);
}
