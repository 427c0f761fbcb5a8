//! What the process says on stderr and stdout: as well as it can, and never at the cost of what it does.
//!
//! Whoever reads may be slow, stuck, or gone. So lines wait in a bounded buffer, and a thread of its own writes them. Nobody
//! waits for that thread: a line that does not fit is dropped and counted, and once the reader reads again it is told how
//! many are missing. Only at the end of the process is there a wait, a short one, for what was said last.
//!
//! What strangers sent may be in a line. [`Plain`] shows the characters in it that would move a terminal's cursor, begin
//! another line or turn the text around, so that a line is one line and says what it seems to say.

use std::{
    fmt::{self, Display, Write as _},
    io::{self, Write},
    sync::{
        Condvar, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use crate::tasks;

/// What may wait for the reader of a file, in bytes; as much again may be on its way.
const WAITING_BYTES_MAX: usize = 1 << 20;

/// The wait after a file said that it would block: whoever started the process made it so.
const RETRY: Duration = Duration::from_millis(10);

/// Lines on their way to a file.
#[derive(Debug)]
pub struct Output {
    state: Mutex<State>,
    /// Rung when there is something to write.
    something: Condvar,
    /// Rung when all is written.
    nothing: Condvar,
    dropped: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    /// Whole lines.
    waiting: Vec<u8>,
    /// Lines dropped since the reader was told so.
    missing: u64,
    /// Whether the thread writes.
    is_busy: bool,
}

/// The process's stderr.
pub fn stderr() -> &'static Output {
    static STDERR: OnceLock<&Output> = OnceLock::new();
    STDERR.get_or_init(|| Output::open("stderr", io::stderr()))
}

/// The process's stdout.
pub fn stdout() -> &'static Output {
    static STDOUT: OnceLock<&Output> = OnceLock::new();
    STDOUT.get_or_init(|| Output::open("stdout", io::stdout()))
}

impl Output {
    /// Starts the thread that writes to `file`, for as long as the process lives.
    pub fn open(name: &str, file: impl Write + Send + 'static) -> &'static Self {
        let (state, something, nothing) = (Mutex::default(), Condvar::new(), Condvar::new());
        let output: &Self = Box::leak(Box::new(Self { state, something, nothing, dropped: AtomicU64::new(0) }));
        tasks::thread(name, move || output.write_to(file)).expect("the system has a thread left at start");
        output
    }

    /// Says one line, whatever is in it. Waits for nothing.
    pub fn say(&self, line: impl Display) {
        self.put(format!("{}\n", Plain(line)).as_bytes());
    }

    /// Says whole lines of our own. Waits for nothing.
    pub fn put(&self, lines: &[u8]) {
        let mut state = self.state();
        if state.waiting.len() + lines.len() <= WAITING_BYTES_MAX {
            state.waiting.extend_from_slice(lines);
        } else {
            self.drop_lines(&mut state, lines);
        }
        self.something.notify_one();
    }

    /// Lines that were dropped since the process began.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// Waits until all is written, for `patience` at most.
    pub fn flush(&self, patience: Duration) {
        let is_behind = |state: &mut State| state.is_busy || !state.waiting.is_empty();
        let _ = self.nothing.wait_timeout_while(self.state(), patience, is_behind);
    }

    fn write_to(&self, mut file: impl Write) {
        loop {
            let (lines, missing) = self.next();
            let written = write(&mut file, &lines);
            let told = written.and_then(|()| match missing {
                0 => Ok(()),
                // What was dropped came after what waited.
                missing => write(&mut file, format!("crewcast: {missing} lines were dropped\n").as_bytes()),
            });
            let mut state = self.state();
            if told.is_err() {
                state.missing += missing;
                self.drop_lines(&mut state, &lines);
            }
            state.is_busy = false;
            if state.waiting.is_empty() {
                self.nothing.notify_all();
            }
        }
    }

    /// The lines that wait, once there are any, and how many are missing behind them.
    fn next(&self) -> (Vec<u8>, u64) {
        let is_idle = |state: &mut State| state.waiting.is_empty();
        let state = self.something.wait_while(self.state(), is_idle);
        let mut state = state.unwrap_or_else(PoisonError::into_inner);
        state.is_busy = true;
        (std::mem::take(&mut state.waiting), std::mem::take(&mut state.missing))
    }

    fn drop_lines(&self, state: &mut State, lines: &[u8]) {
        let count = lines.iter().filter(|byte| **byte == b'\n').count() as u64;
        state.missing += count;
        self.dropped.fetch_add(count, Ordering::Relaxed);
    }

    /// Nothing runs while it is held that could panic between two changes.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The log's lines, each in one piece.
impl Write for &'static Output {
    fn write(&mut self, lines: &[u8]) -> io::Result<usize> {
        self.put(lines);
        Ok(lines.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes all, for as long as it takes.
fn write(file: &mut impl Write, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match file.write(bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => bytes = &bytes[written..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                #[expect(clippy::disallowed_methods, reason = "this is a thread of its own")]
                std::thread::sleep(RETRY);
            }
            Err(error) => return Err(error),
        }
    }
    file.flush()
}

/// Text in which every character that a terminal would obey, or that hides what the text says, is shown as its number.
#[derive(Debug, Clone, Copy)]
pub struct Plain<T>(pub T);

impl<T: Display> Display for Plain<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(Showing(f), "{}", self.0)
    }
}

/// Writes on what it gets, plain.
#[derive(Debug)]
pub struct Showing<W>(pub W);

impl<W: fmt::Write> fmt::Write for Showing<W> {
    fn write_str(&mut self, mut text: &str) -> fmt::Result {
        while let Some(at) = text.find(is_obeyed) {
            self.0.write_str(&text[..at])?;
            let mut rest = text[at..].chars();
            for unit in rest.next().into_iter().flat_map(|c| c.encode_utf16(&mut [0; 2]).to_vec()) {
                match unit {
                    0x0a => self.0.write_str("\\n")?,
                    unit => write!(self.0, "\\u{unit:04x}")?,
                }
            }
            text = rest.as_str();
        }
        self.0.write_str(text)
    }
}

/// Whether a terminal or a viewer does something else with a character than to show it: control characters, and those of
/// Unicode that break lines, turn the direction of text, or are not seen.
fn is_obeyed(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}')
        || matches!(c, '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, mpsc};

    use super::*;

    /// A file that takes one piece each time that somebody lets it, and fails when told so.
    struct Reader {
        may: mpsc::Receiver<io::Result<()>>,
        read: Arc<Mutex<String>>,
    }

    impl Write for Reader {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.may.recv().unwrap_or_else(|_| Err(io::ErrorKind::BrokenPipe.into()))?;
            self.read.lock().expect("whole").push_str(std::str::from_utf8(bytes).expect("text"));
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn output() -> (&'static Output, mpsc::Sender<io::Result<()>>, Arc<Mutex<String>>) {
        let (let_it, may) = mpsc::channel();
        let read = Arc::<Mutex<String>>::default();
        (Output::open("test", Reader { may, read: read.clone() }), let_it, read)
    }

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn a_reader_that_hangs_costs_lines_and_nobodys_time_and_is_told_how_many() {
        let (output, let_it, read) = output();
        let line = "x".repeat(1023);
        output.say(&line);
        while !output.state().is_busy {
            std::thread::yield_now();
        }
        for _ in 1..3000 {
            output.say(&line);
        }
        let dropped = output.dropped();
        assert_eq!(dropped, 3000 - 1 - WAITING_BYTES_MAX as u64 / 1024);
        output.flush(Duration::from_millis(1));
        for _ in 0..3 {
            let_it.send(Ok(())).expect("the thread lives");
        }
        output.flush(LONG);
        let read = read.lock().expect("whole");
        assert_eq!(read.lines().filter(|read| **read == line).count() as u64, 3000 - dropped);
        assert_eq!(read.lines().last(), Some(format!("crewcast: {dropped} lines were dropped").as_str()));
    }

    #[test]
    fn lines_that_a_file_refuses_are_counted_and_told_of_once_it_takes_some() {
        let (output, let_it, read) = output();
        output.say("one");
        let_it.send(Err(io::ErrorKind::StorageFull.into())).expect("the thread lives");
        output.flush(LONG);
        assert_eq!(output.dropped(), 1);
        for _ in 0..2 {
            let_it.send(Ok(())).expect("the thread lives");
        }
        output.say("two");
        output.flush(LONG);
        assert_eq!(*read.lock().expect("whole"), "two\ncrewcast: 1 lines were dropped\n");
        drop(let_it);
        output.say("three");
        output.flush(LONG);
        assert_eq!(output.dropped(), 2, "whoever is gone for good costs nothing else");
    }

    #[test]
    fn what_a_terminal_would_obey_is_shown() {
        let sent = "a\u{1b}[2J\r\nb\t\u{7f}\u{9b}1m\u{85}\u{202e}c\u{2066}\u{2028}\u{feff}\u{e0041} ä漢😀\\";
        let shown =
            "a\\u001b[2J\\u000d\\nb\\u0009\\u007f\\u009b1m\\u0085\\u202ec\\u2066\\u2028\\ufeff\\udb40\\udc41 ä漢😀\\";
        assert_eq!(Plain(sent).to_string(), shown);
    }
}
