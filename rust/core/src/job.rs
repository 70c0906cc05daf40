//! Everything that determines the pixels: the inputs, where they lie, and how they are combined.

use std::ops::Range;
use std::sync::Arc;

use crate::coadd::{Combine, Streamed, Sweep};
use crate::coverage::gains::Rules;
use crate::geom::{CoordGrid, Rect};
use crate::photometry;
use crate::plan::MAX_BYTES;
use crate::resample::Kernel;
use crate::source::{Source, Store};
use crate::weights::Weighting;
use crate::{Error, Result};

/// Channels of a job at most: what a run of samples keeps on the stack is a multiple of it.
pub const MAX_CHANNELS: usize = 64;

/// One image and what is known of it.
#[derive(Clone)]
pub struct Input {
    /// What messages call it.
    pub name: String,
    /// Its pixels.
    pub image: Arc<Source>,
    /// What weighs each pixel, of the image's shape, one plane; where that is no weight above 0 the
    /// pixel is invalid.
    pub weight_map: Option<Arc<Source>>,
    /// What that means, and what else weighs pixels.
    pub weighting: Weighting,
    /// Where output pixels fall in it.
    pub grid: Arc<CoordGrid>,
    /// Weight of the whole.
    pub weight: f64,
    /// Factor on its values, per channel.
    pub gain: Vec<f64>,
    /// Added after the factor, per channel.
    pub offset: Vec<f64>,
    /// Variance of the noise of its pixels, per channel, before the factor; NaN if it is not known.
    /// What a weight map says of variances is multiplied by it.
    pub noise: Vec<f64>,
}

impl Input {
    /// Planes that a window of it holds: its channels, and its weights if it has any.
    pub fn planes(&self) -> usize {
        self.image.channels() + usize::from(self.weight_map.is_some())
    }

    /// The planes that are stored: of which source, and which of its planes.
    pub fn stored_planes(&self) -> impl Iterator<Item = (&Arc<Source>, usize)> {
        self.sources().flat_map(|source| (0..source.planes).map(move |plane| (source, plane)))
    }

    /// Whether a device can decode its samples, and they take no more room until then.
    pub fn can_stay_stored(&self) -> bool {
        let fits = |source: &Arc<Source>| source.encoding.sample.bytes() <= size_of::<f32>();
        self.image.bayer.is_none() && self.sources().all(fits)
    }

    /// Variance of the noise of its values, once they are multiplied by the factor, of a channel.
    pub fn variance(&self, channel: usize) -> f64 {
        self.gain[channel] * self.gain[channel] * self.noise[channel]
    }

    /// Its image, and its weight map if it has one.
    pub fn sources(&self) -> impl Iterator<Item = &Arc<Source>> {
        std::iter::once(&self.image).chain(&self.weight_map)
    }

    /// Files that it is read from.
    pub fn n_files(&self) -> usize {
        let in_files = self.sources().filter(|source| matches!(source.store, Store::File { .. }));
        in_files.count() - usize::from(self.is_one_file())
    }

    /// Whether its weights are in the file of its pixels.
    pub fn is_one_file(&self) -> bool {
        let stores = self.weight_map.as_ref().map(|map| (&map.store, &self.image.store));
        matches!(stores, Some((Store::File { path: a, .. }, Store::File { path: b, .. })) if a == b)
    }
}

/// A mosaic to be made. The plan is beside it: it decides how, never what.
#[derive(Clone)]
pub struct Job {
    /// Rows of the output.
    pub height: usize,
    /// Columns of the output.
    pub width: usize,
    /// Channels of the output and of every input.
    pub channels: usize,
    /// How inputs are sampled.
    pub kernel: Kernel,
    /// How samples are combined.
    pub combine: Combine,
    /// The images, in the order in which they count.
    pub inputs: Vec<Input>,
    /// How inputs are matched before the passes, if they are.
    pub matching: Option<photometry::Rules>,
    /// How the second pass corrects the inputs, if there is one.
    pub two_pass: Option<Rules>,
    /// Whether the output says the variance of its pixels, too.
    pub variance: bool,
}

impl Job {
    /// Refuse an input that makes no sense here.
    fn check(&self, input: &Input) -> Result<()> {
        let refuse = |why: String| Err(Error::Argument(format!("{}: {why}", input.name)));
        if input.image.channels() != self.channels {
            let (has, wants) = (input.image.channels(), self.channels);
            return refuse(format!("has {has} channels where the mosaic has {wants}"));
        }
        let [width, height] = input.grid.frame();
        if input.sources().any(|source| (source.width, source.height) != (width, height)) {
            return refuse("its pixels, weights and coordinates differ in shape".to_owned());
        }
        if input.weight_map.as_ref().is_some_and(|map| map.channels() != 1) {
            return refuse("its weights must be one plane".to_owned());
        }
        if input.image.bayer.is_some() && width.min(height) < 2 {
            return refuse("a raw colour frame has two rows and columns at least".to_owned());
        }
        if !(input.weight > 0.0 && input.weight.is_finite()) {
            return refuse("its weight must be finite and above 0".to_owned());
        }
        let ramp = input.weighting.feather_px;
        if !(ramp >= 0.0 && ramp.is_finite()) {
            return refuse("its ramp must be finite and not negative".to_owned());
        }
        let affine = input.gain.iter().chain(&input.offset);
        let complete = input.gain.len() == self.channels && input.offset.len() == self.channels;
        if !complete || affine.clone().any(|v| !v.is_finite()) {
            return refuse("a finite gain and offset is needed for each channel".to_owned());
        }
        let no_noise = |v: &f64| *v < 0.0 || v.is_infinite();
        if input.noise.len() != self.channels || input.noise.iter().any(no_noise) {
            return refuse("a variance from 0 up, or NaN, is needed for each channel".to_owned());
        }
        Ok(())
    }

    /// Refuse what makes no sense; everything else in the engine relies on it.
    pub fn validate(&self) -> Result<()> {
        if self.channels == 0 || self.channels > MAX_CHANNELS {
            return Err(Error::Argument(format!(
                "a mosaic of {} channels cannot be made (1 to {MAX_CHANNELS} can)",
                self.channels
            )));
        }
        if self.height == 0 || self.width == 0 || self.inputs.is_empty() {
            return Err(Error::Argument("a job needs an output and inputs".to_owned()));
        }
        if self.output_bytes() > MAX_BYTES {
            let (width, height) = (self.width, self.height);
            return Err(Error::Budget(format!(
                "an output of {width} x {height} pixels is beyond any disk; choose a coarser grid"
            )));
        }
        if let Combine::Streamed(Streamed { kappa: (low, high), .. }) = self.combine
            && !(low >= 1.0 && high >= 1.0)
        {
            return Err(Error::Argument(format!(
                "kappas of {low} and {high} may reject every sample; at least 1 is needed"
            )));
        }
        self.matching.as_ref().map_or(Ok(()), photometry::Rules::validate)?;
        self.inputs.iter().try_for_each(|input| self.check(input))
    }

    /// The same job with other gains and offsets of its inputs, by input and channel. Images and
    /// coordinates are shared.
    pub fn with_photometry(&self, gains: Vec<Vec<f64>>, offsets: Vec<Vec<f64>>) -> Result<Self> {
        if (gains.len(), offsets.len()) != (self.inputs.len(), self.inputs.len()) {
            return Err(Error::Argument("gains and offsets of every input are needed".to_owned()));
        }
        let affine = gains.into_iter().zip(offsets);
        let inputs = self.inputs.iter().zip(affine).map(|(input, (gain, offset))| Input {
            gain,
            offset,
            ..input.clone()
        });
        let job = Self { inputs: inputs.collect(), ..*self };
        job.validate()?;
        Ok(job)
    }

    /// The job of some of the inputs, in this order, on a rectangle of the output: one pass, without
    /// matching. Images are shared.
    pub fn part(&self, inputs: &[usize], rect: &Rect) -> Result<Self> {
        let canvas = Rect::frame(self.width, self.height);
        if rect.is_empty() || rect.intersect(&canvas) != *rect {
            return Err(Error::Argument("a part of a job lies within its output".to_owned()));
        }
        let missing = || Error::Argument("a part of a job has inputs of that job".to_owned());
        let seen = |&number: &usize| {
            let input = self.inputs.get(number).ok_or_else(missing)?;
            let grid = Arc::new(input.grid.seen_from(rect.x0, rect.y0));
            Ok(Input { grid, ..input.clone() })
        };
        let job = Self {
            height: rect.height(),
            width: rect.width(),
            inputs: inputs.iter().map(seen).collect::<Result<_>>()?,
            matching: None,
            two_pass: None,
            ..*self
        };
        job.validate()?;
        Ok(job)
    }

    /// Whether samples of some input give way to those of others.
    pub fn gives_way(&self) -> bool {
        self.inputs.iter().any(|input| input.weighting.saturation.is_some())
    }

    /// The most planes that come together while inputs come one after the other.
    pub fn running_planes(&self) -> usize {
        self.most(Sweep::running_planes)
    }

    /// The most planes of bounds that a sweep looks at.
    pub fn bounds_planes(&self) -> usize {
        self.most(Sweep::bounds_planes)
    }

    fn most(&self, planes: impl Fn(Sweep, &Self) -> usize) -> usize {
        let sweeps = self.combine.sweeps().into_iter();
        sweeps.map(|sweep| planes(sweep, self)).max().unwrap_or(0)
    }

    /// Planes of the image: the channels, and the coverage.
    pub fn image_planes(&self) -> usize {
        self.channels + 1
    }

    /// Planes of the output: those of the image; by channel, how many samples were rejected below
    /// and above, if the method counts them; and the variance of each channel, if it is wanted.
    pub fn planes(&self) -> usize {
        self.count_planes().end + self.variance_planes()
    }

    /// Which planes of the output are counts.
    pub fn count_planes(&self) -> Range<usize> {
        let counts = if self.combine.rejects() { 2 * self.channels } else { 0 };
        self.image_planes()..self.image_planes() + counts
    }

    /// How many planes of the output, the last ones, are variances.
    pub fn variance_planes(&self) -> usize {
        if self.variance { self.channels } else { 0 }
    }

    /// Bytes of the output's planes.
    pub fn output_bytes(&self) -> u64 {
        let values = self.image_planes() + self.variance_planes();
        let each = values * size_of::<f32>() + self.count_planes().len() * size_of::<i16>();
        [each, self.height, self.width]
            .iter()
            .fold(1, |product: u64, &n| product.saturating_mul(n as u64))
    }

    /// Bytes of the coordinate grids.
    pub fn grid_bytes(&self) -> u64 {
        self.inputs.iter().map(|input| input.grid.bytes()).sum()
    }

    /// Bytes of all pixels and weights that are read from files.
    pub fn input_bytes(&self) -> u64 {
        let sources = self.inputs.iter().flat_map(Input::sources);
        let in_files = sources.filter(|source| matches!(source.store, Store::File { .. }));
        in_files.map(|source| source.bytes()).sum()
    }

    /// Bytes of the images and weight maps that are brought into memory before the first pass.
    pub fn deferred_bytes(&self) -> u64 {
        let sources = self.inputs.iter().flat_map(Input::sources);
        let deferred = sources.filter(|source| matches!(source.store, Store::Deferred(_)));
        deferred.map(|source| source.bytes()).fold(0, u64::saturating_add)
    }

    /// Bytes of the largest image or weight map that is decompressed before the first pass.
    pub fn largest_packed_bytes(&self) -> u64 {
        let sources = self.inputs.iter().flat_map(Input::sources);
        let packed = sources.filter(|source| {
            matches!(source.store, Store::Deferred(_) | Store::File { unpacked: true, .. })
        });
        packed.map(|source| source.bytes()).max().unwrap_or(0)
    }
}
