//! A server of one export over a volume in memory, asked by a client of a few lines that may say anything.

#[cfg(test)]
mod client;
#[cfg(test)]
mod detach;
#[cfg(test)]
mod full;
#[cfg(test)]
mod host;
#[cfg(test)]
mod hostile;
#[cfg(test)]
mod random;
#[cfg(test)]
mod requests;
