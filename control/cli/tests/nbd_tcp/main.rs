//! NBD on TCP, with and without TLS: `archipelago nbd serve` on a real node, the clients that people have, and hostile ones.

#[cfg(test)]
mod connections;
#[cfg(test)]
mod deaths;
#[cfg(test)]
mod exports;
#[cfg(test)]
mod full;
#[cfg(test)]
#[path = "../harness/mod.rs"]
mod harness;
#[cfg(test)]
mod hostile;
#[cfg(test)]
mod random;
#[cfg(test)]
mod server;
#[cfg(test)]
mod sharing;
#[cfg(test)]
mod tls;
#[cfg(test)]
mod wire;
