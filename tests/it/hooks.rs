//! Hooks: who may deliver, what is refused with which words, and what a delivery that is sent again does.

use base64::{Engine as _, prelude::BASE64_STANDARD};
use crewcast::{
    app::Server,
    auth::{Role, generate_secret},
};
use reqwest::RequestBuilder;
use serde_json::{Value, json};
use standardwebhooks::Webhook;

use crate::{
    readme,
    support::{Client, config, connect, database, number, server, token},
};

fn secret() -> String {
    format!("whsec_{}", BASE64_STANDARD.encode(&generate_secret().as_bytes()[..32]))
}

fn now() -> i64 {
    time::OffsetDateTime::now_utc().unix_timestamp()
}

fn body(title: &str) -> String {
    let data = json!({
        "kind": "stock", "severity": "warning", "title": title, "body": "12 bags are left.",
        "audience": ["company", "user:eva"], "value": 12, "threshold": 20.5,
    });
    // White space is signed, too.
    serde_json::to_string_pretty(&json!({ "type": "alert", "timestamp": "2026-11-24T09:00:00Z", "data": data }))
        .unwrap()
}

/// A delivery without a signature and without a token.
fn delivery(server: &Server, body: &str) -> RequestBuilder {
    let request = reqwest::Client::new().post(format!("http://{}/hooks/alerts", server.address));
    request.header("content-type", "application/json").body(body.to_owned())
}

fn sign(secret: &str, id: &str, at: i64, body: &str) -> String {
    Webhook::new(secret).unwrap().sign(id, at, body.as_bytes()).unwrap()
}

fn signed(server: &Server, secret: &str, id: &str, at: i64, body: &str) -> RequestBuilder {
    let request = delivery(server, body).header("webhook-id", id).header("webhook-timestamp", at);
    request.header("webhook-signature", sign(secret, id, at, body))
}

/// The status, whether it was answered before, and the answer.
async fn ask(request: RequestBuilder) -> (u16, bool, Value) {
    let response = request.send().await.unwrap();
    let replayed = response.headers().get("idempotent-replayed").is_some_and(|value| value == "true");
    let status = response.status().as_u16();
    assert_eq!(response.headers().contains_key("www-authenticate"), status == 401);
    (status, replayed, response.json().await.unwrap())
}

#[tokio::test]
async fn a_signed_delivery_raises_an_alert_once_however_often_it_is_sent() {
    let url = database().await;
    let secret = secret();
    let nodes =
        [server(&url, &["--webhook-secret", &secret]).await, server(&url, &["--webhook-secret", &secret]).await];
    let eva = Client::new(&nodes[0], &token("eva", &[]));
    let mut stream = eva.follow("").await;
    let (status, replayed, first) = ask(signed(&nodes[0], &secret, "msg_1", now(), &body("Cement"))).await;
    assert_eq!((status, replayed), (201, false), "{first}");
    let (_, mut told) = stream.expect("alert:new").await;
    let meta = told.as_object_mut().unwrap().remove("meta").unwrap();
    assert_eq!((&told, &meta["rooms"], &meta["mutationId"]), (&first, &json!(["company"]), &json!("msg_1")));
    assert_eq!((&first["value"], &first["threshold"], &first["projectId"]), (&json!(12), &json!(20.5), &Value::Null));
    // Whoever sends it again signs it again.
    for (node, at) in [(&nodes[0], now() - 100), (&nodes[1], now() + 100)] {
        let again = ask(signed(node, &secret, "msg_1", at, &body("Cement"))).await;
        assert_eq!(again, (201, true, first.clone()));
    }
    let (status, _, problem) = ask(signed(&nodes[1], &secret, "msg_1", now(), &body("Sand"))).await;
    assert_eq!((status, &problem["code"]), (422, &json!("idempotency_key_reused")));
    let at_once = (0..20).map(|nth| {
        let request = signed(&nodes[nth % 2], &secret, "msg_2", now(), &body("Sand"));
        tokio::spawn(async { ask(request).await.0 })
    });
    for asked in at_once.collect::<Vec<_>>() {
        assert!([201, 409].contains(&asked.await.unwrap()), "done, or under way");
    }
    assert_eq!(number(&mut connect(&url).await, "select count(*) from crewcast.alerts").await, 2);
    for node in nodes {
        node.stop().await;
    }
}

#[tokio::test]
async fn while_one_secret_takes_the_others_place_both_hold() {
    let (old, new, other) = (secret(), secret(), secret());
    let server = server(&database().await, &["--webhook-secret", &format!("{old},{new}")]).await;
    for (nth, secret) in [&old, &new].into_iter().enumerate() {
        let (status, ..) = ask(signed(&server, secret, &format!("msg_{nth}"), now(), &body("x"))).await;
        assert_eq!(status, 201);
    }
    assert_eq!(ask(signed(&server, &other, "msg_9", now(), &body("x"))).await.0, 401);
    // A sender that changes its secret may sign with both.
    let (at, body) = (now(), body("x"));
    let both = format!("{} {}", sign(&other, "msg_3", at, &body), sign(&new, "msg_3", at, &body));
    let request = delivery(&server, &body).header("webhook-id", "msg_3").header("webhook-timestamp", at);
    assert_eq!(ask(request.header("webhook-signature", both)).await.0, 201);
    server.stop().await;
}

#[tokio::test]
async fn what_is_not_signed_as_it_must_be_is_refused_with_what_is_wrong() {
    let url = database().await;
    let (secret, text) = (secret(), body("Cement"));
    let server = server(&url, &["--webhook-secret", &secret]).await;
    let signature = sign(&secret, "msg_1", now(), &text);
    let with = |id: &str, at: String, signature: &str, body: &str| {
        let request = delivery(&server, body).header("webhook-id", id).header("webhook-timestamp", at);
        request.header("webhook-signature", signature)
    };
    let at = || now().to_string();
    let unsigned = "None of the signatures";
    let cases = [
        (delivery(&server, &text), "missing of a signature: `webhook-id`, `webhook-timestamp`, `webhook-signature`."),
        (delivery(&server, "{").header("webhook-id", "x").header("webhook-timestamp", at()), ": `webhook-signature`."),
        (with("msg_2", at(), &signature, &text), unsigned),
        (with("msg_1", (now() - 7).to_string(), &signature, &text), unsigned),
        (with("msg_1", at(), &signature, &text.replace("Cement", "Sand")), unsigned),
        (with("msg_1", at(), &signature, "{"), unsigned),
        (with("msg_1", at(), &signature.replace("v1,", "v2,"), &text), unsigned),
        (with("msg_1", at(), &signature[3..], &text), unsigned),
        (with("msg_1", at(), "v1,", &text), unsigned),
        (with("msg_1", at(), "", &text), unsigned),
        (signed(&server, &secret, "msg_1", now() - 302, &text), "more than 5 minutes ago"),
        (signed(&server, &secret, "msg_1", now() + 330, &text), "more than 5 minutes ahead"),
        (with("msg_1", i64::MIN.to_string(), &signature, &text), "not a time in seconds"),
        (with("msg_1", "9".repeat(13), &signature, &text), "not a time in seconds"),
        (with("msg_1", "soon".to_owned(), &signature, &text), "not a time in seconds"),
    ];
    for (nth, (request, words)) in cases.into_iter().enumerate() {
        let (status, _, problem) = ask(request).await;
        let detail = problem["detail"].as_str().unwrap();
        assert_eq!((status, detail.contains(words)), (401, true), "case {nth}: {problem}");
        assert!(!problem.to_string().contains(&signature[3..]) && !problem.to_string().contains(&secret[6..]));
    }
    // Signed well, and still nothing that can be taken.
    for (id, body, expected) in [
        ("a b", text.as_str(), (400, "invalid_header")),
        ("msg_1", "{", (400, "malformed_json")),
        ("msg_1", r#"{"type":"alert"}"#, (422, "invalid_body")),
        ("msg_1", &text.replace("\"alert\"", "\"comment\""), (422, "invalid_body")),
        ("msg_1", &text.replace("2026-11-24T", "24 Nov "), (422, "invalid_body")),
        ("msg_1", &text.replace("warning", "loud"), (422, "invalid_body")),
        ("msg_1", &text.replace("user:eva", "kitchen"), (422, "invalid_body")),
    ] {
        let (status, _, problem) = ask(signed(&server, &secret, id, now(), body)).await;
        assert_eq!((status, problem["code"].as_str().unwrap()), expected, "{body} {problem}");
    }
    assert_eq!(number(&mut connect(&url).await, "select count(*) from crewcast.alerts").await, 0);
    // What was refused is tried anew under its id.
    assert_eq!(ask(signed(&server, &secret, "msg_1", now(), &text)).await.0, 201);
    server.stop().await;
}

#[tokio::test]
async fn a_service_needs_no_signature_and_names_its_request_either_way() {
    let server = server(&database().await, &[]).await;
    let text = body("Cement");
    let of = |sub: &str, role: Role| delivery(&server, &text).bearer_auth(token(sub, &[role]));
    let (status, _, problem) = ask(delivery(&server, &text).header("webhook-id", "msg_1")).await;
    assert_eq!(status, 401);
    let detail = problem["detail"].as_str().unwrap();
    assert!(detail.contains("CREWCAST_WEBHOOK_SECRET") && detail.contains("Authorization: Bearer"), "{detail}");
    assert_eq!(ask(of("max", Role::Manager)).await.0, 403);
    for name in ["webhook-id", "idempotency-key"] {
        let (status, replayed, first) = ask(of("erp", Role::Service).header(name, name)).await;
        assert_eq!((status, replayed), (201, false));
        assert_eq!(ask(of("erp", Role::Service).header(name, name)).await, (201, true, first.clone()));
        let (_, replayed, others) = ask(of("crm", Role::Service).header(name, name)).await;
        assert!(!replayed && others["id"] != first["id"], "a name is its sender's own");
    }
    assert!(!ask(of("erp", Role::Service)).await.1, "without a name each is another one");
    server.stop().await;
}

#[tokio::test]
async fn a_secret_that_is_none_is_refused_at_the_start_and_not_shown() {
    let url = database().await;
    for bad in ["whsec_bad", "secret,whsec_bad"] {
        let start = Server::start(config(&url, &["--webhook-secret", bad]), |_| {}).await;
        let error = format!("{:#}", start.err().expect("it is refused"));
        assert!(error.starts_with("CREWCAST_WEBHOOK_SECRET: secret number 1 is not whsec_"), "{error}");
        assert!(!error.contains("bad") && !format!("{:?}", config(&url, &["--webhook-secret", bad])).contains("bad"));
    }
}

#[tokio::test]
async fn the_readme_shows_how_to_sign() {
    let url = database().await;
    let secret = secret();
    let server = server(&url, &["--webhook-secret", &secret]).await;
    let block = readme::blocks("sh").into_iter().find(|block| block.contains("openssl dgst")).expect("README has it");
    let output = tokio::process::Command::new("bash")
        .args(["-euc", &block])
        .env("CREWCAST_WEBHOOK_SECRET", &secret)
        .env("URL", format!("http://{}", server.address))
        .env("JSON", "Content-Type: application/json")
        .output()
        .await
        .unwrap();
    let alert: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"));
    assert_eq!(alert["title"], "Cement runs low", "{alert}");
    assert_eq!(number(&mut connect(&url).await, "select count(*) from crewcast.alerts").await, 1);
    server.stop().await;
}
