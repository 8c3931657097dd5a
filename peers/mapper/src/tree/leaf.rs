//! A leaf: 512 objects, each a list of runs of blocks, and the layers that they are in.

use super::place::{LEAF_SLOTS, Layer};

/// Blocks of an object that lie in one layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Run {
    pub(crate) start: u16,
    pub(crate) blocks: u16,
    /// Index in the leaf's table.
    pub(crate) layer: u32,
}

impl Run {
    pub(crate) fn end(&self) -> u16 {
        #[cfg(test)]
        super::tests::count_step();
        self.start + self.blocks
    }
}

/// Where blocks of an object that are written go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LeafPlace {
    /// Where they are: a run of this layer, up to this block.
    Owned(Layer, u16),
    /// To a new place: nothing up to this block is owned.
    Unowned(u16),
}

#[derive(Debug, Clone)]
pub(crate) struct Leaf {
    layers: Vec<Layer>,
    objects: Vec<Vec<Run>>,
}

impl Leaf {
    pub(crate) fn new() -> Self {
        Leaf {
            layers: Vec::new(),
            objects: vec![Vec::new(); LEAF_SLOTS],
        }
    }

    /// A leaf as it was stored; the caller has checked the parts.
    pub(crate) fn from_parts(layers: Vec<Layer>, objects: Vec<Vec<Run>>) -> Self {
        Leaf { layers, objects }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.objects.iter().all(Vec::is_empty)
    }

    pub(crate) fn layers(&self) -> &[Layer] {
        &self.layers
    }

    pub(crate) fn runs(&self, object: usize) -> &[Run] {
        &self.objects[object]
    }

    pub(crate) fn layer(&self, run: &Run) -> Layer {
        self.layers[run.layer as usize]
    }

    /// Layer of `block` and the end of its run; `None`: up to the end of the object.
    pub(crate) fn lookup(&self, object: usize, block: u16) -> (Option<Layer>, Option<u16>) {
        match self.runs_from(object, block).first() {
            Some(run) if run.start <= block => (Some(self.layer(run)), Some(run.end())),
            Some(run) => (None, Some(run.start)),
            None => (None, None),
        }
    }

    /// Where a write of blocks `start .. end` goes, from its first block on. Logarithmic in the runs of the object, and a
    /// step for each run inside the write.
    pub(super) fn write_place(
        &self,
        object: usize,
        start: u16,
        end: u16,
        owned: impl Fn(&Layer) -> bool,
    ) -> LeafPlace {
        for run in self.runs_from(object, start) {
            if run.start >= end {
                break;
            }
            let layer = self.layer(run);
            if owned(&layer) {
                return if run.start > start {
                    LeafPlace::Unowned(run.start)
                } else {
                    LeafPlace::Owned(layer, run.end().min(end))
                };
            }
        }
        LeafPlace::Unowned(end)
    }

    /// The runs of `object` that end behind `block`.
    fn runs_from(&self, object: usize, block: u16) -> &[Run] {
        let runs = &self.objects[object];
        &runs[runs.partition_point(|run| run.end() <= block)..]
    }

    /// Puts blocks `start .. end` of `object` into `layer`, or makes them zeros.
    pub(crate) fn set(&mut self, object: usize, start: u16, end: u16, layer: Option<Layer>) {
        let layer = layer.map(|layer| self.index_of(layer));
        let runs = &mut self.objects[object];
        // The runs that touch or join the range.
        let from = runs.partition_point(|run| run.end() < start);
        let to = from + runs[from..].partition_point(|run| run.start <= end);
        let mut put: Vec<Run> = Vec::with_capacity(3);
        let mut add = |start: u16, end: u16, layer: u32| match put.last_mut() {
            _ if start >= end => {}
            Some(last) if last.layer == layer && last.end() == start => {
                last.blocks = end - last.start;
            }
            _ => put.push(Run {
                start,
                blocks: end - start,
                layer,
            }),
        };
        let touched = &runs[from..to];
        for run in touched {
            add(run.start, run.end().min(start), run.layer);
        }
        if let Some(layer) = layer {
            add(start, end, layer);
        }
        for run in touched {
            add(run.start.max(end), run.end(), run.layer);
        }
        runs.splice(from..to, put);
    }

    fn index_of(&mut self, layer: Layer) -> u32 {
        let found = self.layers.iter().rposition(|known| *known == layer);
        let index = found.unwrap_or_else(|| {
            self.layers.push(layer);
            self.layers.len() - 1
        });
        u32::try_from(index).expect(
            "at most one layer for each of 2^22 blocks, and those replaced since the last page",
        )
    }
}
