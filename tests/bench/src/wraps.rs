//! `--wraps`: data keys of 32 bytes under an A256GCMKW key, beside what each asks of the token: an unwrap one C_Decrypt
//! with AES-GCM, a wrap the calls of [`Bare::Wrap`]. Then the [moving of envelopes](crate::rewraps).

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context as _, ensure};
use kms_client::{Client, v1};

use crate::{
    WORKERS,
    call::Call,
    load::Shape,
    raw::{self, Bare},
    report::Report,
    rewraps,
    service::Bench,
};

/// The key that wraps.
pub(crate) const KEY: &str = "bench-wraps";

/// What the rows are compared with.
pub(crate) const SHARE_OF: &str = "the bare token";

const SHAPES: [Shape; 4] = [
    Shape::Unary(1),
    Shape::Unary(64),
    Shape::Batch { items: 16, in_flight: 4 },
    Shape::Batch { items: 128, in_flight: 4 },
];

pub(crate) async fn run(rounds: usize, span: Duration) -> anyhow::Result<Report> {
    let bench = Bench::start(&[]).await?;
    bench.create_key(KEY, "A256GCMKW").await?;
    let made = bench.client(0).crypto().generate_data_key(generate()).await?.into_inner();
    let unwrap = v1::UnwrapKeyRequest {
        name: name(),
        wrapped_key: made.wrapped_key,
        encryption_context: context(),
        ..Default::default()
    };
    let mut report = Report::default();
    for round in 1..=rounds {
        println!("round {round} of {rounds}");
        report.add("C_Encrypt, 1 process", raw::measure(&bench, Bare::Encrypt, 1, span)?);
        report.add("C_Encrypt, 2 processes", raw::measure(&bench, Bare::Encrypt, WORKERS, span)?);
        for shape in SHAPES {
            let processes = if shape == Shape::Unary(1) { 1 } else { WORKERS };
            let bare = raw::measure(&bench, Bare::Decrypt, processes, span)?;
            report.add(&format!("C_Decrypt, {processes} process(es)"), bare);
            let row = bench.drive(shape, span, |client| unwraps(client, &unwrap, shape)).await?;
            report.add(&format!("unwrap, {shape}"), row.beside(&bare));
            let bare = raw::measure(&bench, Bare::Wrap, processes, span)?;
            report.add(&format!("the calls of a wrap, {processes} process(es)"), bare);
            let row = bench.drive(shape, span, |client| data_keys(client, shape)).await?;
            report.add(&format!("GenerateDataKey, {shape}"), row.beside(&bare));
        }
        for in_flight in [1, 64] {
            let row = bench.measure_empty(in_flight, span).await?;
            report.add(&format!("empty gRPC call, {in_flight} in flight"), row);
        }
    }
    rewraps::run(&bench).await?;
    Ok(report)
}

/// A key's name.
fn name() -> String {
    format!("keys/{KEY}")
}

/// Said with each wrap and unwrap here.
pub(crate) fn context() -> BTreeMap<String, String> {
    [("table".to_owned(), "orders".to_owned())].into()
}

fn generate() -> v1::GenerateDataKeyRequest {
    v1::GenerateDataKeyRequest { name: name(), length: 32, encryption_context: context() }
}

fn unwraps(client: &Client, request: &v1::UnwrapKeyRequest, shape: Shape) -> Box<dyn FnMut() -> Call + Send> {
    let (client, request) = (client.crypto(), request.clone());
    let Shape::Batch { items, .. } = shape else {
        return Box::new(move || {
            let (mut client, request) = (client.clone(), request.clone());
            Box::pin(async move {
                client.unwrap_key(request).await?;
                Ok(())
            })
        });
    };
    Box::new(move || {
        let mut client = client.clone();
        let requests = vec![request.clone(); items];
        Box::pin(async move {
            let answer = client.batch_unwrap_key(v1::BatchUnwrapKeyRequest { requests }).await?.into_inner();
            let done = |result: &v1::BatchUnwrapKeyResult| {
                matches!(result.outcome, Some(v1::batch_unwrap_key_result::Outcome::Response(_)))
            };
            ensure!(answer.results.iter().all(done), "an item of a batch failed");
            Ok(())
        })
    })
}

fn data_keys(client: &Client, shape: Shape) -> Box<dyn FnMut() -> Call + Send> {
    let client = client.crypto();
    let Shape::Batch { items, .. } = shape else {
        return Box::new(move || {
            let mut client = client.clone();
            Box::pin(async move {
                client.generate_data_key(generate()).await?;
                Ok(())
            })
        });
    };
    Box::new(move || {
        let mut client = client.clone();
        let requests = vec![generate(); items];
        Box::pin(async move {
            let request = v1::BatchGenerateDataKeyRequest { requests };
            let answer = client.batch_generate_data_key(request).await?.into_inner();
            made(answer)?;
            Ok(())
        })
    })
}

/// The data keys of a batch, none of which has failed.
pub(crate) fn made(
    answer: v1::BatchGenerateDataKeyResponse,
) -> anyhow::Result<Vec<v1::GenerateDataKeyResponse>> {
    let each = answer.results.into_iter().map(|result| match result.outcome {
        Some(v1::batch_generate_data_key_result::Outcome::Response(made)) => Some(made),
        _ => None,
    });
    each.collect::<Option<_>>().context("an item of a batch failed")
}
