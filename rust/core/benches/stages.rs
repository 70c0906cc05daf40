//! The stages of a pass, each alone and on one thread: decode, coordinates with each kernel,
//! combine. `make bench` runs them and puts the table into `benchmarks/RESULTS.md`.

use std::hint::black_box;
use std::sync::Arc;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use zmrs_core::budget::{Ledger, Projection};
use zmrs_core::cancel::CancelToken;
use zmrs_core::coadd::{Combine, Parameters};
use zmrs_core::fit::{self, Fitted};
use zmrs_core::geom::{CoordGrid, Rect};
use zmrs_core::job::{Input, Job};
use zmrs_core::pass::{Place, Progress};
use zmrs_core::plan::Plan;
use zmrs_core::resample::Kernel;
use zmrs_core::sink::MemorySink;
use zmrs_core::source::{Bayer, Encoding, FileCache, READ_CHUNK_BYTES, SampleType, Source, Store};
use zmrs_core::sweeps::{Scratch, run_pass};

const EDGE: usize = 1024;

fn encoding(sample: SampleType) -> Encoding {
    Encoding { sample, big_endian: true, scale: 1.0, zero: 32768.0, blank: Some(-32768) }
}

fn decode(c: &mut Criterion) {
    let mut group = c.benchmark_group("decode");
    group.throughput(Throughput::Elements((EDGE * EDGE) as u64));
    let mut out = vec![0.0_f32; EDGE * EDGE];
    for (name, sample) in
        [("i16", SampleType::I16), ("i32", SampleType::I32), ("f64", SampleType::F64)]
    {
        let bytes = vec![17_u8; EDGE * EDGE * sample.bytes()];
        let rule = encoding(sample);
        group.bench_function(name, |b| {
            b.iter(|| zmrs_core::cpu::decode(black_box(&bytes), &rule, &mut out));
        });
    }
    let bytes = vec![17_u8; EDGE * EDGE * 4];
    let plain = Encoding { zero: 0.0, blank: None, ..encoding(SampleType::F32) };
    group.bench_function("f32", |b| {
        b.iter(|| zmrs_core::cpu::decode(black_box(&bytes), &plain, &mut out));
    });
    group.finish();
}

/// Raw frames of 16 bits in memory, as three colours: a sample is one of one colour.
fn colours(c: &mut Criterion) {
    let mut group = c.benchmark_group("colours");
    group.throughput(Throughput::Elements((3 * EDGE * EDGE) as u64));
    let raw = Source {
        store: Store::Memory(Box::new(vec![17_u8; EDGE * EDGE * 2])),
        encoding: encoding(SampleType::I16),
        planes: 1,
        width: EDGE,
        height: EDGE,
        bayer: Bayer::from_name("GRBG", Some(65000.0)),
    };
    let mut out = vec![vec![0.0_f32; EDGE * EDGE]; 3];
    let (files, mut scratch) = (FileCache::default(), vec![0; READ_CHUNK_BYTES]);
    let rect = Rect::frame(EDGE, EDGE);
    group.bench_function("bilinear", |b| {
        b.iter(|| {
            let mut planes: Vec<_> = out.iter_mut().map(|plane| &mut plane[..]).collect();
            raw.read(0, &files, black_box(&rect), &mut planes, EDGE, false, &mut scratch).unwrap();
        });
    });
    group.finish();
}

fn method(name: &str) -> Combine {
    Combine::from_name(name, &Parameters::default()).expect("it is in the list")
}

/// `depth` frames turned by three degrees and shifted by a few pixels, all over the whole output.
fn job(kernel: Kernel, combine: Combine, depth: usize) -> Job {
    let inputs = (0..depth).map(|k| {
        let (sin, cos) = 3.0_f64.to_radians().sin_cos();
        let (spacing, cells) = (128, EDGE / 128);
        let nodes = (0..(cells + 3) * (cells + 3)).map(|n| {
            let at = |i: usize| (i as f64 - 1.0) * spacing as f64;
            let (x, y) = (at(n % (cells + 3)), at(n / (cells + 3)));
            let shift = 60.3 + 1.7 * k as f64;
            [cos * x - sin * y + shift, sin * x + cos * y + 0.1 * shift]
        });
        let frame = [EDGE + 256, EDGE + 256];
        let nodes = nodes.collect();
        let grid = CoordGrid::new([0, 0], spacing, [cells, cells], frame, nodes).unwrap();
        let values: Vec<u8> = (0..frame[0] * frame[1])
            .flat_map(|i| (1000.0 + (i % 977) as f32).to_ne_bytes())
            .collect();
        let image = Source {
            store: Store::Memory(Box::new(values)),
            encoding: Encoding {
                sample: SampleType::F32,
                big_endian: false,
                scale: 1.0,
                zero: 0.0,
                blank: None,
            },
            planes: 1,
            width: frame[0],
            height: frame[1],
            bayer: None,
        };
        Input {
            name: k.to_string(),
            image: Arc::new(image),
            weight_map: None,
            weighting: zmrs_core::weights::Weighting::default(),
            grid: Arc::new(grid),
            weight: 1.0,
            gain: vec![1.0],
            offset: vec![0.0],
            noise: vec![1.0],
        }
    });
    let inputs = inputs.collect();
    Job {
        height: EDGE,
        width: EDGE,
        channels: 1,
        kernel,
        combine,
        inputs,
        matching: None,
        two_pass: None,
        variance: false,
    }
}

fn run(job: &Job) -> u64 {
    let plan = Plan { memory_bytes: Some(1 << 30), ..Plan::default() };
    let fitted = fit::fit(job, job, &plan, &Projection::default(), 0, 0).unwrap();
    let (mut image, mut coverage) = (vec![0.0; EDGE * EDGE], vec![0.0; EDGE * EDGE]);
    let sink = MemorySink::new(EDGE, vec![&mut image, &mut coverage], Vec::new(), Vec::new());
    let ledger = Ledger::new(1 << 30);
    let (cancel, progress) = (CancelToken::default(), Progress::default());
    let bounds = std::env::temp_dir().join(format!("zmrs-bench-{}", std::process::id()));
    let scratch = Some(Scratch { path: &bounds, write_back: false });
    let Fitted { layout, plan, .. } = fitted;
    let stats = run_pass(
        job,
        Place::default(),
        layout,
        &plan,
        &ledger,
        &sink,
        None,
        scratch,
        None,
        &cancel,
        &progress,
    )
    .unwrap();
    // Only combines in two sweeps have made it.
    let _ = std::fs::remove_file(&bounds);
    stats.samples.iter().sum()
}

fn pass(c: &mut Criterion) {
    let mut group = c.benchmark_group("pass");
    group.sample_size(20);
    for (name, kernel) in [
        ("nearest", Kernel::Nearest),
        ("bilinear", Kernel::Bilinear),
        ("bicubic", Kernel::Bicubic),
        ("lanczos2", Kernel::Lanczos2),
        ("lanczos3", Kernel::Lanczos3),
    ] {
        let job = job(kernel, method("mean"), 4);
        group.throughput(Throughput::Elements(run(&job)));
        group.bench_with_input(BenchmarkId::new("mean", name), &job, |b, job| b.iter(|| run(job)));
    }
    let stacked =
        ["median", "kappa-sigma", "kappa-sigma-stream", "winsorized", "winsor-percentile"];
    let stacked = stacked.map(|name| (name, 16));
    for (name, depth) in
        ["sum", "min", "max", "last"].map(|name| (name, 4)).into_iter().chain(stacked)
    {
        let job = job(Kernel::Bilinear, method(name), depth);
        group.throughput(Throughput::Elements(run(&job)));
        group.bench_with_input(BenchmarkId::new(name, "bilinear"), &job, |b, job| {
            b.iter(|| run(job));
        });
    }
    group.finish();
}

criterion_group!(benches, decode, colours, pass);
criterion_main!(benches);
