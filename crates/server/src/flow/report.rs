//! `/debug/api_priority_and_fairness/`: what is queued and what runs, as text tables.

use super::Flow;
use super::queue_set::Request;
use gantry_api::k8s_openapi::jiff::Timestamp;
use std::fmt::Write;

/// The time of something that has not happened, as Go writes it.
const NEVER: &str = "0001-01-01T00:00:00Z";

/// Columns are padded to the widest cell and one blank, and to eight characters at least; the last is not.
fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width =
        |i: usize| rows.iter().filter_map(|r| r.get(i)).map(|c| c.chars().count() + 2).max().unwrap_or(0).max(8);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut out = String::new();
    for row in rows {
        for (i, cell) in row.iter().enumerate() {
            if i + 1 == row.len() {
                out.push_str(cell);
            } else {
                let padding = widths[i].saturating_sub(cell.chars().count() + 1);
                out.push_str(cell);
                out.push(',');
                out.extend(std::iter::repeat_n(' ', padding));
            }
        }
        out.push('\n');
    }
    out
}

fn row<const N: usize>(cells: [&dyn ToString; N]) -> Vec<String> {
    cells.map(ToString::to_string).to_vec()
}

fn seat_seconds(value: f64) -> String {
    let mut out = String::new();
    // Writing to a string cannot fail.
    let _ = write!(out, "{value:.8}ss");
    out
}

impl Flow {
    /// The dump of this name; None where there is none. `details` adds what requests are about.
    #[must_use]
    pub fn dump(&self, name: &str, details: bool) -> Option<String> {
        match name {
            "dump_priority_levels" => Some(self.dump_levels()),
            "dump_queues" => Some(self.dump_queues()),
            "dump_requests" => Some(self.dump_requests(details)),
            _ => None,
        }
    }

    fn dump_levels(&self) -> String {
        let heads = [
            "PriorityLevelName",
            "ActiveQueues",
            "IsIdle",
            "IsQuiescing",
            "WaitingRequests",
            "ExecutingRequests",
            "DispatchedRequests",
            "RejectedRequests",
            "TimedoutRequests",
            "CancelledRequests",
        ];
        let mut rows = vec![heads.map(str::to_owned).to_vec()];
        for (name, level) in &self.state.lock().levels {
            let (set, totals) = (&level.set, &level.set.totals);
            rows.push(row([
                name,
                &set.queues().filter(|q| !q.waiting.is_empty()).count(),
                &set.is_idle(),
                &level.quiescing,
                &set.waiting(),
                &set.running().count(),
                &totals.dispatched,
                &totals.refused,
                &totals.timed_out,
                &totals.cancelled,
            ]));
        }
        table(&rows)
    }

    fn dump_queues(&self) -> String {
        let heads = [
            "PriorityLevelName",
            "Index",
            "PendingRequests",
            "ExecutingRequests",
            "SeatsInUse",
            "NextDispatchR",
            "InitialSeatsSum",
            "MaxSeatsSum",
            "TotalWorkSum",
        ];
        let mut rows = vec![heads.map(str::to_owned).to_vec()];
        for (name, level) in &self.state.lock().levels {
            for (i, queue) in level.set.queues().enumerate() {
                let seats = queue.seats_waiting();
                rows.push(row([
                    name,
                    &i,
                    &queue.waiting.len(),
                    &queue.running,
                    &queue.seats_in_use,
                    &seat_seconds(queue.next),
                    &seats,
                    &seats,
                    &seat_seconds(queue.work()),
                ]));
            }
        }
        table(&rows)
    }

    fn dump_requests(&self, details: bool) -> String {
        let mut heads = vec![
            "PriorityLevelName",
            "FlowSchemaName",
            "QueueIndex",
            "RequestIndexInQueue",
            "FlowDistingsher",
            "ArriveTime",
            "InitialSeats",
            "FinalSeats",
            "AdditionalLatency",
            "StartTime",
        ];
        if details {
            heads.extend(["UserName", "Verb", "APIPath", "Namespace", "Name", "APIVersion", "Resource", "SubResource"]);
        }
        let mut rows = vec![heads.into_iter().map(str::to_owned).collect::<Vec<_>>()];
        for (name, level) in &self.state.lock().levels {
            for request in level.set.running() {
                rows.push(request_row(name, "-1", "-1", request, details));
            }
            for (i, queue) in level.set.queues().enumerate() {
                for (place, request) in queue.waiting.iter().enumerate() {
                    rows.push(request_row(name, &i.to_string(), &place.to_string(), request, details));
                }
            }
        }
        table(&rows)
    }
}

fn request_row(level: &str, queue: &str, place: &str, request: &Request, details: bool) -> Vec<String> {
    let time = |t: Option<Timestamp>| t.map_or_else(|| NEVER.to_owned(), |t| t.to_string());
    let mut out = row([
        &level,
        &request.schema,
        &queue,
        &place,
        &request.distinguisher,
        &time(Some(request.arrived)),
        &request.width,
        &0,
        &"0s",
        &time(request.started),
    ]);
    if details {
        let info = &request.info;
        let version = match info.group.as_str() {
            "" => info.version.clone(),
            group => format!("{group}/{}", info.version),
        };
        out.extend(row([
            &request.user,
            &info.verb,
            &info.path,
            &info.namespace,
            &info.name,
            &version,
            &info.resource,
            &info.subresource,
        ]));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let rows = [row([&"Name", &"Long heading", &"X"]), row([&"a-longer-name", &1, &""])];
        assert_eq!(table(&rows), "Name,          Long heading, X\na-longer-name, 1,            \n");
    }
}
