//! `--trace`: a timeline of the run, written to a file for Perfetto and Chrome's tracing page.
//!
//! The format is Chrome's "Trace Event Format": complete events (`"ph": "X"`) with microseconds
//! since the start, on lanes that are named by metadata events. Spans that overlap on a lane, such
//! as two batches on a device, are drawn on several lanes.

use std::collections::HashMap;
use std::io::{self, BufWriter, Write as _};
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use serde_json::{Value, json};

use crate::atomic_file::AtomicFile;

/// Collects spans; does nothing without `--trace`.
pub struct Trace {
    started: Instant,
    to: Option<(AtomicFile, Mutex<Vec<Span>>)>,
}

/// Where a span is drawn: a group (the host or a device) and a lane in it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Lane {
    /// The group of lanes: `host`, or the name of a device.
    pub group: String,
    /// The name of the lane.
    pub name: String,
}

impl Lane {
    /// A lane of the group `host`.
    #[must_use]
    pub fn host(name: &str) -> Self {
        Self {
            group: "host".to_owned(),
            name: name.to_owned(),
        }
    }
}

struct Span {
    lane: Lane,
    name: &'static str,
    from: Instant,
    to: Instant,
    about: Value,
}

impl Trace {
    /// Starts a trace if a path is given. The file is created immediately, so that a bad path is
    /// noticed early, and gets its final name when it is finished.
    ///
    /// # Errors
    /// If the file cannot be created.
    pub fn new(path: Option<&Path>) -> io::Result<Self> {
        let file = path.map(AtomicFile::create).transpose()?;
        Ok(Self {
            started: Instant::now(),
            to: file.map(|file| (file, Mutex::default())),
        })
    }

    /// A trace that is not written.
    #[must_use]
    pub fn off() -> Self {
        Self {
            started: Instant::now(),
            to: None,
        }
    }

    /// Records a span. `about` returns details shown with it, and is called only if tracing is on.
    pub fn span(
        &self,
        lane: &Lane,
        name: &'static str,
        from: Instant,
        to: Instant,
        about: impl FnOnce() -> Value,
    ) {
        if let Some((_, spans)) = &self.to {
            let span = Span {
                lane: lane.clone(),
                name,
                from,
                to,
                about: about(),
            };
            spans
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(span);
        }
    }

    /// Writes the trace file.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn finish(self) -> io::Result<()> {
        let Some((file, spans)) = self.to else {
            return Ok(());
        };
        let mut spans = spans.into_inner().unwrap_or_else(PoisonError::into_inner);
        apart(&mut spans);
        let mut file = BufWriter::new(file);
        let (mut groups, mut lanes): (Vec<&str>, Vec<&Lane>) = (Vec::new(), Vec::new());
        let mut separator = "[\n";
        let mut event = |file: &mut BufWriter<AtomicFile>, value: Value| {
            write!(file, "{}{value}", std::mem::replace(&mut separator, ",\n"))
        };
        for span in &spans {
            let process = place(&mut groups, span.lane.group.as_str());
            let thread = place(&mut lanes, &span.lane);
            let (process, new_process) = process;
            let (thread, new_thread) = thread;
            for (new, kind, name) in [
                (new_process, "process_name", &span.lane.group),
                (new_thread, "thread_name", &span.lane.name),
            ] {
                if new {
                    event(
                        &mut file,
                        json!({"ph": "M", "name": kind, "pid": process, "tid": thread, "args": {"name": name}}),
                    )?;
                }
            }
            let since =
                |at: Instant| at.saturating_duration_since(self.started).as_secs_f64() * 1e6;
            event(
                &mut file,
                json!({
                    "ph": "X", "name": span.name, "pid": process, "tid": thread,
                    "ts": since(span.from), "dur": since(span.to) - since(span.from), "args": span.about,
                }),
            )?;
        }
        // Write an empty list even if there are no spans.
        if separator == "[\n" {
            file.write_all(b"[")?;
        }
        file.write_all(b"\n]\n")?;
        let file = file.into_inner().map_err(io::IntoInnerError::into_error)?;
        file.finish()
    }
}

/// Moves spans that overlap an earlier one on their lane to an additional lane: `device`, `device
/// 2`.
fn apart(spans: &mut [Span]) {
    spans.sort_by_key(|span| span.from);
    let mut ends: HashMap<Lane, Vec<Instant>> = HashMap::new();
    for span in spans {
        let ends = ends.entry(span.lane.clone()).or_default();
        let free = ends.iter().position(|end| *end <= span.from);
        match free {
            Some(row) => ends[row] = span.to,
            None => ends.push(span.to),
        }
        let row = free.unwrap_or(ends.len() - 1);
        if row > 0 {
            span.lane.name = format!("{} {}", span.lane.name, row + 1);
        }
    }
}

/// The index of an item among those seen so far, and whether it is new.
fn place<T: PartialEq>(seen: &mut Vec<T>, thing: T) -> (usize, bool) {
    if let Some(at) = seen.iter().position(|other| *other == thing) {
        return (at, false);
    }
    seen.push(thing);
    (seen.len() - 1, true)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn what_overlaps_is_drawn_on_lanes_of_its_own() {
        let start = Instant::now();
        let span = |name: &str, from, to| Span {
            lane: Lane::host(name),
            name: "batch",
            from: start + Duration::from_secs(from),
            to: start + Duration::from_secs(to),
            about: Value::Null,
        };
        let mut spans = [
            span("device", 2, 4),
            span("device", 0, 3),
            span("device", 3, 5),
            span("other", 1, 2),
            span("device", 4, 6),
        ];
        apart(&mut spans);
        let lanes: Vec<&str> = spans.iter().map(|span| span.lane.name.as_str()).collect();
        assert_eq!(lanes, ["device", "other", "device 2", "device", "device 2"]);
    }
}
