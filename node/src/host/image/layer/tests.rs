//! What is refused, each by its reason; that parts of any length say the same; that what a real writer makes is taken.

use proptest::prelude::*;

use super::*;

/// A header of the usual kind, with whatever bytes as names.
fn header(kind: u8, name: &[u8], link: &[u8], size: u64) -> Vec<u8> {
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(tar::EntryType::new(kind));
    header.set_mode(0o644);
    header.set_size(size);
    let raw = header.as_old_mut();
    raw.name[..name.len()].copy_from_slice(name);
    raw.linkname[..link.len()].copy_from_slice(link);
    header.set_cksum();
    header.as_bytes().to_vec()
}

fn device(kind: u8, major: u32, minor: u32) -> Vec<u8> {
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(tar::EntryType::new(kind));
    header.set_path("dev/x").unwrap();
    header.set_size(0);
    header.set_device_major(major).unwrap();
    header.set_device_minor(minor).unwrap();
    header.set_cksum();
    header.as_bytes().to_vec()
}

fn extension(kind: u8, text: &[u8]) -> Vec<u8> {
    let mut bytes = header(kind, b"ext", b"", text.len() as u64);
    bytes.extend_from_slice(text);
    bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
    bytes
}

fn pax(key: &str, value: &str) -> Vec<u8> {
    let mut len = key.len() + value.len() + 3;
    while format!("{len} {key}={value}\n").len() != len {
        len += 1;
    }
    extension(b'x', format!("{len} {key}={value}\n").as_bytes())
}

fn check(tar: &[u8]) -> Result<Contents, String> {
    let mut check = LayerCheck::new(tar.len() as u64);
    check.feed(tar)?;
    check.finish()
}

fn refusal(parts: &[Vec<u8>]) -> String {
    check(&parts.concat()).expect_err("it is refused")
}

#[test]
fn names_that_climb_are_refused_wherever_they_stand() {
    for name in [&b"../evil"[..], b"a/../../evil", b"..", b"/../evil", b"a/.."] {
        assert!(
            refusal(&[header(b'0', name, b"", 0)]).contains("climbs"),
            "{name:?}"
        );
    }
    assert!(refusal(&[pax("path", "../evil"), header(b'0', b"good", b"", 0)]).contains("climbs"));
    assert!(refusal(&[extension(b'L', b"../evil\0"), header(b'0', b"good", b"", 0)]).contains("climbs"));
    // Go takes the long name of GNU before the one of pax.
    let both = [
        pax("path", "good"),
        extension(b'L', b"../evil\0"),
        header(b'0', b"good", b"", 0),
    ];
    assert!(refusal(&both).contains("climbs"));
    let mut prefixed = tar::Header::new_ustar();
    prefixed.set_size(0);
    prefixed.as_ustar_mut().unwrap().prefix[..2].copy_from_slice(b"..");
    prefixed.as_old_mut().name[..1].copy_from_slice(b"x");
    prefixed.set_cksum();
    assert!(refusal(&[prefixed.as_bytes().to_vec()]).contains("climbs"));
    for name in [&b"./a"[..], b"/etc/passwd", b"a//b", b"..a/b.."] {
        assert_eq!(
            check(&header(b'0', name, b"", 0)).map(|contents| contents.entries),
            Ok(1),
            "{name:?}"
        );
    }
    assert!(check(&header(b'5', b"./", b"", 0)).is_ok());
    assert!(refusal(&[header(b'0', b"/", b"", 0)]).contains("no name"));
}

#[test]
fn names_too_long_for_a_disk_are_refused() {
    assert!(
        refusal(&[pax("path", &"a/".repeat(2000)), header(b'0', b"x", b"", 0)]).contains("bytes in its name")
    );
    assert!(refusal(&[pax("path", &"a".repeat(256)), header(b'0', b"x", b"", 0)]).contains("more than 255"));
    assert!(check(&[pax("path", &"a".repeat(255)), header(b'0', b"x", b"", 0)].concat()).is_ok());
    assert!(refusal(&[header(b'2', b"x", b"", 0)]).contains("target of 0 bytes"));
    assert!(
        refusal(&[pax("linkpath", &"a".repeat(4096)), header(b'2', b"x", b"y", 0)]).contains("4096 bytes")
    );
}

#[test]
fn links_lead_nowhere_outside() {
    assert!(refusal(&[header(b'1', b"x", b"../../etc/shadow", 0)]).contains("leads out"));
    assert!(refusal(&[header(b'1', b"x", b"", 0)]).contains("names no file"));
    assert!(check(&header(b'1', b"x", b"/bin/busybox", 0)).is_ok());
    // Links mean what they mean in the container; only writing through one that leads out is refused.
    for target in [&b"../../../etc"[..], b"/../etc", b"a/../../../b"] {
        let link = header(b'2', b"d/link", target, 0);
        assert!(check(&link).is_ok());
        let through = header(b'0', b"./d//link/cron", b"", 0);
        assert!(refusal(&[link.clone(), through.clone()]).contains("goes through a link"));
        // A directory in its place is a directory.
        assert!(check(&[link, header(b'5', b"d/link/", b"", 0), through].concat()).is_ok());
    }
    // As merged /usr and relative links have it.
    for target in [&b"../usr/lib"[..], b"/etc", b"a/b"] {
        assert!(
            check(
                &[
                    header(b'2', b"d/link", target, 0),
                    header(b'0', b"d/link/x", b"", 0)
                ]
                .concat()
            )
            .is_ok()
        );
    }
}

#[test]
fn whiteouts_delete_something_with_a_name() {
    for name in [&b".wh."[..], b"a/.wh..", b"a/.wh..."] {
        assert!(
            refusal(&[header(b'0', name, b"", 0)]).contains("deletes nothing"),
            "{name:?}"
        );
    }
    for name in [&b".wh.a/b"[..], b".wh..wh..opq/x"] {
        assert!(
            refusal(&[header(b'0', name, b"", 0)]).contains("has something in it"),
            "{name:?}"
        );
    }
    assert!(refusal(&[header(b'0', b".wh..wh.plnk", b"", 0)]).contains("unknown kind"));
    for kind in *b"2356" {
        assert!(check(&header(kind, b"a/.wh.b", b"x", 0)).is_err(), "{kind}");
    }
    for name in [
        &b".wh.a"[..],
        b"a/.wh.b",
        b".wh..wh..opq",
        b"a/.wh..wh..opq",
        b".wh....",
        b"a.wh.b",
    ] {
        assert!(check(&header(b'0', name, b"", 0)).is_ok(), "{name:?}");
    }
}

#[test]
fn devices_are_refused_but_for_the_harmless() {
    for (kind, major, minor) in [
        (b'4', 8, 0),
        (b'4', 1, 3),
        (b'3', 0, 0),
        (b'3', 1, 1),
        (b'3', 10, 200),
    ] {
        assert!(refusal(&[device(kind, major, minor)]).contains(&format!("device {major}:{minor}")));
    }
    assert!(check(&device(b'3', 1, 3)).is_ok());
    // Without the newer format there is no number, and 0:0 is a whiteout.
    let mut old = tar::Header::new_old();
    old.set_entry_type(tar::EntryType::Char);
    old.set_path("x").unwrap();
    old.set_size(0);
    old.set_cksum();
    assert!(refusal(&[old.as_bytes().to_vec()]).contains("device 0:0"));
}

#[test]
fn sizes_are_what_go_reads() {
    let content = vec![1; 1024];
    // The size of pax goes before the header's.
    let with_pax = [pax("size", "1024"), header(b'0', b"x", b"", 0), content.clone()].concat();
    assert_eq!(
        check(&with_pax),
        Ok(Contents {
            disk_bytes: 4096,
            entries: 1
        })
    );
    // A directory has no content, whatever its header says: what follows is a header.
    assert!(refusal(&[header(b'5', b"d", b"", 1024), content.clone()]).contains("malformed"));
    for size in ["-1", "x", "99999999999999999999", "+-1", " 1"] {
        assert!(
            refusal(&[pax("size", size), header(b'0', b"x", b"", 0)]).contains("malformed"),
            "{size}"
        );
    }
    for size in [
        &b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"[..],
        b"9",
        b"777777777777\x80",
    ] {
        let mut header = header(b'0', b"x", b"", 0);
        header[124..136].fill(0);
        let len = size.len().min(12);
        header[124..124 + len].copy_from_slice(&size[..len]);
        assert!(check(&header).is_err());
    }
    // 2^62 bytes in base 256: taken, and not there.
    let mut large = tar::Header::new_gnu();
    large.set_path("x").unwrap();
    large.set_size(1 << 62);
    large.set_cksum();
    assert!(refusal(&[large.as_bytes().to_vec(), content.clone()]).contains("ends within an entry"));
    for key in ["GNU.sparse.map", "GNU.sparse.major", "GNU.sparse.realsize"] {
        assert!(
            refusal(&[pax(key, "1"), header(b'0', b"x", b"", 0)]).contains("sparse"),
            "{key}"
        );
    }
    assert!(refusal(&[header(b'S', b"x", b"", 0)]).contains("sparse"));
    assert!(refusal(&[header(b'7', b"x", b"", 0)]).contains("unknown kind"));
    let long = header(b'L', b"x", b"", EXTENSION_BYTES_MAX + 1);
    assert!(refusal(&[long]).contains("at most 1048576 are read"));
}

#[test]
fn a_tar_ends_where_it_says() {
    let entry = [header(b'0', b"x", b"", 3), vec![1; 512]].concat();
    let zeros = vec![0; 1024];
    assert!(check(&[]).is_ok());
    assert!(check(&zeros).is_ok());
    assert!(check(&entry).is_ok(), "as Go, without an end");
    assert!(
        check(&[entry.clone(), zeros.clone(), vec![7; 5000]].concat()).is_ok(),
        "what follows the end is nobody's"
    );
    assert!(refusal(&[entry.clone(), vec![0; 512], entry.clone()]).contains("goes on after its end"));
    assert!(refusal(&[entry[..700].to_vec()]).contains("ends within"));
    assert!(refusal(&[entry[..100].to_vec()]).contains("ends within"));
    let mut damaged = entry;
    damaged[0] ^= 1;
    assert!(refusal(&[damaged]).contains("no tar"));
    assert!(refusal(&[vec![b'<'; 512]]).contains("malformed"));
    let nul = extension(b'x', b"13 path=a\0b.\n");
    assert!(refusal(&[nul, header(b'0', b"x", b"", 0)]).contains("NUL"));
    for text in [
        &b"5 a=b\n"[..],
        b"999 a=b\n",
        b"x a=b\n",
        b"6 =bb\n",
        b"7 a=b\nx",
        b"  ",
    ] {
        assert!(
            refusal(&[extension(b'x', text)]).contains("malformed"),
            "{text:?}"
        );
    }
}

#[test]
fn too_many_entries_and_too_many_bytes_are_refused() {
    let mut many = LayerCheck::new(0);
    many.contents.entries = ENTRIES_MAX - 1;
    let entry = header(b'0', b"x", b"", 0);
    many.feed(&entry).unwrap();
    assert!(
        many.feed(&entry)
            .unwrap_err()
            .contains("more than 1000000 entries")
    );
    assert_eq!(bytes_max(10 << 20), 2000 << 20);
    let mut large = LayerCheck::new(1 << 20);
    large.feed(&header(b'0', b"x", b"", 10 << 30)).unwrap();
    let zeros = vec![0; 1 << 20];
    large.bytes = (1 << 30) - (1 << 20);
    large.feed(&zeros).unwrap();
    assert!(
        large
            .feed(&[0])
            .unwrap_err()
            .contains("unpacks to more than 1073741824 bytes")
    );
}

fn an_entry() -> impl Strategy<Value = Vec<u8>> {
    let name = prop::sample::select(vec![
        &b"a"[..],
        b"a/b",
        b"l",
        b"l/x",
        b"../x",
        b".wh.a",
        b".wh..wh..opq",
        b"a/.wh..",
        b"/",
        b"",
    ]);
    let kind = prop::sample::select(b"01234567xgLKS\0".to_vec());
    (
        name,
        kind,
        0u64..2000,
        prop::sample::select(vec![&b""[..], b"a", b"../..", b"/etc"]),
    )
        .prop_map(|(name, kind, size, link)| {
            let mut bytes = header(kind, name, link, size);
            bytes.resize(
                bytes.len() + usize::try_from(size).unwrap().next_multiple_of(BLOCK),
                b'0',
            );
            bytes
        })
}

proptest! {
    /// Where the parts are cut changes nothing.
    #[test]
    fn parts_of_any_length_say_the_same(
        entries in prop::collection::vec(an_entry(), 0..6),
        lengths in prop::collection::vec(1usize..1500, 1..20),
        cut in 0usize..2000,
    ) {
        let mut tar = entries.concat();
        tar.truncate(tar.len().saturating_sub(cut));
        let mut in_parts = LayerCheck::new(tar.len() as u64);
        let mut rest = tar.as_slice();
        let mut fed = Ok(());
        for len in lengths.iter().cycle() {
            let (part, after) = rest.split_at((*len).min(rest.len()));
            fed = fed.and_then(|()| in_parts.feed(part));
            rest = after;
            if rest.is_empty() { break; }
        }
        prop_assert_eq!(fed.and_then(|()| in_parts.finish()), check(&tar));
    }

    /// What another program reads of an honest tar is what this one counts.
    #[test]
    fn counts_what_a_real_writer_wrote(files in prop::collection::vec(("[a-z]{1,150}", 0usize..10_000), 0..10)) {
        let mut archive = tar::Builder::new(Vec::new());
        let mut disk_bytes = 0;
        for (name, len) in &files {
            let mut header = tar::Header::new_gnu();
            header.set_size(*len as u64);
            archive.append_data(&mut header, name, vec![9; *len].as_slice()).unwrap();
            disk_bytes += len.next_multiple_of(4096) as u64;
        }
        let tar = archive.into_inner().unwrap();
        prop_assert_eq!(check(&tar), Ok(Contents { disk_bytes, entries: files.len() as u64 }));
    }
}
