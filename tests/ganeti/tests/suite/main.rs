//! All scenarios in one program, so that two clusters run at a time whatever the files are.

mod backup;
mod cluster;
mod instances;
mod origin;
mod rapi;
mod restarts;
mod scripts;
