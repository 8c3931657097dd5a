//! Images in other formats, in and out: a real node, the real command, QEMU's own programs, and what hostile people make of a file.

#[cfg(test)]
mod addresses;
#[cfg(test)]
mod below;
#[cfg(test)]
mod confinement;
#[cfg(test)]
mod conversions;
#[cfg(test)]
mod damage;
#[cfg(test)]
mod deaths;
#[cfg(test)]
#[path = "../harness/mod.rs"]
mod harness;
#[cfg(test)]
mod images;
