//! The extension module `zmrs._zmrs`: what Python may ask of the engine. Nothing is computed here.

mod arrays;
mod device;
mod errors;
mod gate;
mod geometry;
mod info;
mod job;
mod pass;
mod photometry;
mod plan;
mod survey;
mod two_pass;

use pyo3::prelude::*;

#[pymodule]
mod _zmrs {
    #[pymodule_export]
    use super::device::{
        Step, Windows, describe_blur, describe_input, describe_job, grid_of_input,
    };
    #[pymodule_export]
    use super::geometry::CoordGrid;
    #[pymodule_export]
    use super::info::{build_info, give_back};
    #[pymodule_export]
    use super::job::{Input, Job, Source};
    #[pymodule_export]
    use super::pass::{Layout, PassStats, fit, run_pass_into_arrays, run_pass_into_files};
    #[pymodule_export]
    use super::photometry::{
        GainSolution, LatticeSamples, OffsetSolution, lattice_bytes, sample_lattice, solve_entries,
    };
    #[pymodule_export]
    use super::plan::Plan;
    #[pymodule_export]
    use super::survey::{Findings, survey_bytes, survey_inputs};
    #[pymodule_export]
    use super::two_pass::{
        InputGains, Marks, Planes, blank_low_coverage, blank_low_coverage_of_arrays, blur_coverage,
        copy_planes, luminance_percentile, measure_gains, write_depth,
    };
}
