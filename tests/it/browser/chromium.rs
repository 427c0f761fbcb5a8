//! Chromium, driven through chromedriver by the W3C's WebDriver protocol.
//!
//! One chromedriver serves every test and ends with the test process, however that ends; its Chromiums end with it.

use std::{
    io::{BufRead, BufReader, Read as _, Write as _},
    net::{Ipv4Addr, TcpStream},
    process::{Child, ChildStdout, Command, Stdio},
    sync::{Arc, LazyLock},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use reqwest::Method;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::support::{PATIENCE, own_folder};

/// Browsers at once: each takes 300 MB, and a core while it starts.
const BROWSERS_MAX: usize = 2;

const MISSING: &str = "these tests need Chromium: apt-get install chromium chromium-driver";

/// Nothing but the page under test, and no traffic of the browser's own. The pipe is how Chromium learns of the end of
/// its chromedriver, and then ends too.
const ARGUMENTS: [&str; 10] = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--remote-debugging-pipe",
    "--window-size=900,600",
];

/// The shell ends chromedriver when its own standard input, a pipe from this process, is closed.
const RUN: &str = "chromedriver --port=0 & exec >/dev/null; read -r _; kill $!";

struct Driver {
    port: u16,
    /// Its standard input is what keeps chromedriver.
    _shell: Child,
    _output: BufReader<ChildStdout>,
}

impl Driver {
    fn start() -> Self {
        let mut command = Command::new("sh");
        command.args(["-c", RUN]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut shell = command.spawn().unwrap();
        let mut output = BufReader::new(shell.stdout.take().unwrap());
        let mut line = String::new();
        while output.read_line(&mut line).unwrap() > 0 {
            if let Some((_, port)) = line.split_once("started successfully on port ") {
                let port = port.trim().trim_end_matches('.').parse().unwrap();
                return Self { port, _shell: shell, _output: output };
            }
            line.clear();
        }
        panic!("chromedriver does not start: {:?}; {MISSING}", shell.wait());
    }
}

/// A Chromium with one page.
pub struct Browser {
    http: reqwest::Client,
    port: u16,
    session: String,
    _profile: TempDir,
    _place: Arc<SemaphorePermit<'static>>,
}

impl Browser {
    /// Starts as many as the test wants, once there is room for all of them.
    pub async fn open<const N: usize>() -> [Self; N] {
        static DRIVER: LazyLock<Driver> = LazyLock::new(Driver::start);
        static PLACES: Semaphore = Semaphore::const_new(BROWSERS_MAX);
        let place = Arc::new(PLACES.acquire_many(u32::try_from(N).unwrap()).await.unwrap());
        let mut browsers = Vec::new();
        for _ in 0..N {
            browsers.push(Self::start(DRIVER.port, place.clone()).await);
        }
        browsers.try_into().ok().unwrap()
    }

    async fn start(port: u16, place: Arc<SemaphorePermit<'static>>) -> Self {
        std::fs::create_dir_all(own_folder()).unwrap();
        let profile = tempfile::Builder::new().prefix("chromium-").tempdir_in(own_folder()).unwrap();
        let own = format!("--user-data-dir={}", profile.path().display());
        let arguments: Vec<_> = ARGUMENTS.into_iter().chain([own.as_str()]).collect();
        let timeouts = json!({ "script": PATIENCE.as_millis() as u64, "pageLoad": PATIENCE.as_millis() as u64 });
        let wanted = json!({ "timeouts": timeouts, "goog:chromeOptions": { "args": arguments } });
        // Chromedriver is here, whatever proxy the machine has.
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        let mut browser = Self { http, port, session: String::new(), _profile: profile, _place: place };
        let session = browser.ask(Method::POST, "", json!({ "capabilities": { "alwaysMatch": wanted } })).await;
        let session = session.unwrap_or_else(|error| panic!("{error}; {MISSING}"));
        browser.session = format!("/{}", session["sessionId"].as_str().unwrap());
        browser
    }

    /// Asks chromedriver; what it answers, or what it says is wrong.
    async fn ask(&self, method: Method, path: &str, body: Value) -> Result<Value, String> {
        let url = format!("http://{}:{}/session{}{path}", Ipv4Addr::LOCALHOST, self.port, self.session);
        let request = self.http.request(method.clone(), url);
        let request = if method == Method::POST { request.json(&body) } else { request };
        let response = request.send().await.map_err(|error| error.to_string())?;
        let is_fine = response.status().is_success();
        let value = response.json::<Value>().await.map_err(|error| error.to_string())?["value"].take();
        if is_fine { Ok(value) } else { Err(format!("{}: {}", value["error"], value["message"])) }
    }

    /// Loads a page.
    pub async fn go(&self, url: &str) {
        self.ask(Method::POST, "/url", json!({ "url": url })).await.unwrap();
    }

    async fn execute(&self, how: &str, script: &str) -> Result<Value, String> {
        self.ask(Method::POST, &format!("/execute/{how}"), json!({ "script": script, "args": [] })).await
    }

    /// Runs a script in the page; what it returns.
    pub async fn run(&self, script: &str) -> Value {
        self.execute("sync", script).await.unwrap()
    }

    /// Returns what an expression says in the page once that is not nothing. It is looked at whenever the page changes or
    /// has loaded something.
    pub async fn until(&self, expression: &str) -> Value {
        let script = format!(
            "const done = arguments[0]
             const look = () => {{
                 const said = {expression}
                 if (said) {{ changes.disconnect(); loads.disconnect(); done(said) }}
             }}
             const changes = new MutationObserver(look), loads = new PerformanceObserver(look)
             changes.observe(document, {{ attributes: true, characterData: true, childList: true, subtree: true }})
             loads.observe({{ type: 'resource' }})
             look()"
        );
        match self.execute("async", &script).await {
            Ok(said) => said,
            Err(error) => panic!("not {expression}: {error}; see {}\n{}", self.keep().await, self.text().await),
        }
    }

    /// Keeps a picture of the page, and says where.
    async fn keep(&self) -> String {
        let picture = tempfile::Builder::new().prefix("crewcast-page-").suffix(".png").tempfile().unwrap();
        std::fs::write(&picture, self.screenshot().await).unwrap();
        picture.keep().unwrap().1.display().to_string()
    }

    /// What the page shows.
    async fn text(&self) -> String {
        let text = self.execute("sync", "return document.body.innerText").await;
        text.map_or_else(|error| error, |text| text.as_str().unwrap_or_default().to_owned())
    }

    /// Clicks on what a selector finds, as a person would: where it is hidden, this fails.
    pub async fn click(&self, selector: &str) {
        self.act(selector, "click", json!({})).await;
    }

    /// Types into what a selector finds, key by key.
    pub async fn type_into(&self, selector: &str, text: &str) {
        self.act(selector, "value", json!({ "text": text })).await;
    }

    async fn act(&self, selector: &str, action: &str, how: Value) {
        let found = json!({ "using": "css selector", "value": selector });
        let element = self.ask(Method::POST, "/element", found).await.unwrap();
        let id = element.as_object().unwrap().values().next().unwrap().as_str().unwrap().to_owned();
        self.ask(Method::POST, &format!("/element/{id}/{action}"), how).await.unwrap();
    }

    /// Closes the tab, and with it the browser.
    pub async fn close(self) {
        self.ask(Method::DELETE, "/window", Value::Null).await.unwrap();
    }

    /// The page as a PNG.
    async fn screenshot(&self) -> Vec<u8> {
        let encoded = self.ask(Method::GET, "/screenshot", Value::Null).await.unwrap();
        STANDARD.decode(encoded.as_str().unwrap()).unwrap()
    }
}

impl Drop for Browser {
    /// Also when its test has failed: else it would stay until the last test ends.
    fn drop(&mut self) {
        let Ok(mut socket) = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)) else { return };
        let head = format!("DELETE /session{} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", self.session);
        // The answer comes when Chromium is gone: its profile can be removed. Chromedriver leaves the connection open.
        let _ = socket.write_all(head.as_bytes()).and_then(|()| socket.read(&mut [0; 1024]));
    }
}
