//! The mosaic engine: many images in, one mosaic out, inside a memory limit.
//!
//! The way of a pixel: a [`source`] reads and decodes rows of an input into a window; the
//! coordinate grid ([`geom`]) says where each output pixel falls in that window; a kernel
//! ([`resample`]) samples it there; a combiner ([`coadd`]) gathers the samples of all inputs; a
//! [`sink`] writes the finished rows. [`pass`] is the one loop over the output that drives them
//! ([`sweeps`]: once or twice), whose rows a [`device`] may compute in the workers' place,
//! [`layout`] cuts the output into blocks that fit, and [`budget`] holds the memory promise.
//!
//! Nothing here knows Python, and only [`source`] and [`sink`] know files.

pub mod budget;
pub mod cancel;
pub mod coadd;
pub mod coverage;
pub mod cpu;
pub mod device;
pub mod error;
pub mod fit;
pub mod geom;
pub mod job;
pub mod layout;
mod load;
mod noise;
mod pages;
pub mod parallel;
pub mod pass;
pub mod photometry;
pub mod plan;
mod position;
pub mod reproject;
pub mod resample;
mod rows;
pub mod sink;
pub mod source;
pub mod survey;
pub mod sweeps;
pub mod weights;
pub mod window;

pub use error::{Error, Result};
