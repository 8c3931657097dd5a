//! The driver of a device beside a kernel and a volume in memory.

#[cfg(test)]
mod device;
#[cfg(test)]
mod host;
#[cfg(test)]
mod kernel;
