//! What the server answers is what its document says, whatever it is asked: schemathesis makes the requests.

use std::{path::Path, process::Stdio};

use crewcast::auth::Role;
use tokio::process::Command;

use crate::support::{Client, database, server, token};

/// Where `./test` puts it.
const SCHEMATHESIS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/target/schemathesis/bin/schemathesis");

/// Left out: whether good data is taken. That a division exists, and such, is not for the document to say.
const CHECKS: &str = "not_a_server_error,status_code_conformance,content_type_conformance,response_headers_conformance,\
                      response_schema_conformance,unsupported_method,allow_header_conformance,ignored_auth,\
                      missing_required_header,negative_data_rejection";

#[tokio::test]
async fn no_request_gets_an_answer_that_the_document_does_not_have() {
    assert!(Path::new(SCHEMATHESIS).exists(), "schemathesis is needed: run ./test once, which brings it");
    let server = server(&database().await, &[]).await;
    let ana = Client::admin(&server);
    ana.project("north").await;
    let base = format!("http://{}", server.address);
    let reports = tempfile::tempdir().unwrap();
    let output = Command::new(SCHEMATHESIS)
        .args(["run", &format!("{base}/openapi.yaml"), "--url", &base, "--checks", CHECKS])
        .args(["--header", &format!("Authorization: Bearer {}", token("ana", &[Role::Admin]))])
        // A stream does not end. CPython 3.11 may fail to parse sources in two threads at once, which its workers do.
        .args(["--exclude-path", "/events", "--max-examples", "25", "--seed", "1", "--workers", "1", "--no-color"])
        .args(["--suppress-health-check", "all", "--request-timeout", "30"])
        .current_dir(reports.path())
        .stdin(Stdio::null())
        .output()
        .await
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
    assert!(said.contains("Operations:"), "{said}");
    server.stop().await;
}
