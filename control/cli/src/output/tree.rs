//! The chain of clones as a tree: below each volume, snapshot or image are its clones and snapshots.

use std::collections::{BTreeMap, BTreeSet};

use archipelago_api::types::VolumeView;

use crate::size::human;

/// The `volumes` as a tree. Those whose parent was removed are at the top.
///
/// An explicit stack instead of recursion: a chain of clones may be deeper than the thread's stack allows.
pub(crate) fn tree(volumes: &[VolumeView]) -> String {
    let known: BTreeSet<&str> = volumes
        .iter()
        .map(|view| view.entry.name.as_str())
        .collect();
    let mut children: BTreeMap<Option<&str>, Vec<&VolumeView>> = BTreeMap::new();
    for view in volumes {
        let parent = view
            .entry
            .parent
            .as_ref()
            .map(|name| name.as_str())
            .filter(|name| known.contains(name));
        children.entry(parent).or_default().push(view);
    }
    let mut text = String::new();
    let mut pending: Vec<(&VolumeView, String, &str, &str)> = Vec::new();
    push(&mut pending, children.get(&None), "", true);
    while let Some((view, lead, branch, below)) = pending.pop() {
        let entry = &view.entry;
        let attached = if view.attachments.is_empty() {
            ""
        } else {
            ", attached"
        };
        let kind = kind_name(entry.kind);
        text.push_str(&format!(
            "{lead}{branch}{}  ({kind}, {}{attached})\n",
            entry.name,
            human(entry.size)
        ));
        push(
            &mut pending,
            children.get(&Some(entry.name.as_str())),
            &format!("{lead}{below}"),
            false,
        );
    }
    text
}

fn push<'a>(
    pending: &mut Vec<(&'a VolumeView, String, &'static str, &'static str)>,
    children: Option<&Vec<&'a VolumeView>>,
    lead: &str,
    top: bool,
) {
    let Some(children) = children else {
        return;
    };
    for (index, child) in children.iter().enumerate().rev() {
        let (branch, below) = match (top, index + 1 == children.len()) {
            (true, _) => ("", ""),
            (false, true) => ("└─ ", "   "),
            (false, false) => ("├─ ", "│  "),
        };
        pending.push((child, lead.to_owned(), branch, below));
    }
}

/// The name of `kind` in tables.
pub(crate) fn kind_name(kind: archipelago_protocol::catalogue::Kind) -> &'static str {
    use archipelago_protocol::catalogue::Kind;
    match kind {
        Kind::Volume => "volume",
        Kind::Snapshot => "snapshot",
        Kind::Image => "image",
        Kind::Importing => "importing",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use archipelago_protocol::catalogue::{Entry, Kind};
    use archipelago_protocol::{Labels, Lineage, ObjectSize, OnFull};

    fn view(name: &str, kind: Kind, parent: Option<&str>) -> VolumeView {
        let entry = Entry {
            name: name.parse().unwrap(),
            kind,
            lineage: Lineage(1),
            size: 1 << 30,
            object_size: ObjectSize::DEFAULT,
            parent: parent.map(|name| name.parse().unwrap()),
            created: 0,
            on_full: OnFull::default(),
            labels: Labels::default(),
        };
        VolumeView {
            entry,
            pool: "default".parse().unwrap(),
            attachments: Vec::new(),
            damage: None,
            unsupported: None,
        }
    }

    #[test]
    fn below_each_thing_stands_what_was_made_from_it() {
        let volumes = [
            view("base", Kind::Image, None),
            view("orphan", Kind::Volume, Some("gone")),
            view("snap", Kind::Snapshot, Some("vm1")),
            view("vm1", Kind::Volume, Some("base")),
            view("vm2", Kind::Volume, Some("base")),
            view("vm3", Kind::Volume, Some("snap")),
        ];
        let expected = "\
base  (image, 1G)
├─ vm1  (volume, 1G)
│  └─ snap  (snapshot, 1G)
│     └─ vm3  (volume, 1G)
└─ vm2  (volume, 1G)
orphan  (volume, 1G)
";
        assert_eq!(tree(&volumes), expected);
    }

    #[test]
    fn a_very_long_chain_is_no_problem() {
        let chain: Vec<VolumeView> = (0..3000)
            .map(|number: u32| {
                let parent = number.checked_sub(1).map(|parent| format!("v{parent}"));
                view(&format!("v{number}"), Kind::Volume, parent.as_deref())
            })
            .collect();
        assert_eq!(tree(&chain).lines().count(), 3000);
    }
}
