//! Requests and responses as messages.

use hickory_proto::{
    op::{Edns, Message, MessageType, OpCode, Query, ResponseCode},
    rr::{DNSClass, Record, RecordType},
};

/// What is offered to clients as the largest UDP answer, and never exceeded: what fits any path without fragments.
pub(crate) const LARGEST_DATAGRAM: u16 = 1232;
/// The largest UDP answer to a client that says nothing.
const PLAIN_DATAGRAM: u16 = 512;

/// A request that can be answered.
pub(crate) struct Request {
    pub message: Message,
    pub query: Query,
}

impl Request {
    /// Reads a request. The error is the response to send instead, if any: what is no request gets none.
    pub(crate) fn read(bytes: &[u8]) -> Result<Request, Option<Vec<u8>>> {
        let message = match Message::from_vec(bytes) {
            Ok(message) => message,
            Err(_) => return Err(malformed(bytes)),
        };
        if message.metadata.message_type != MessageType::Query {
            return Err(None);
        }
        let refuse = |code| Err(encode(&response(&message, code)));
        if message.metadata.op_code != OpCode::Query {
            return refuse(ResponseCode::NotImp);
        }
        let [query] = &message.queries[..] else { return refuse(ResponseCode::FormErr) };
        let transfer = matches!(query.query_type(), RecordType::AXFR | RecordType::IXFR);
        if query.query_class() != DNSClass::IN || transfer {
            return refuse(ResponseCode::Refused);
        }
        let query = query.clone();
        Ok(Request { message, query })
    }

    /// A response without records.
    pub(crate) fn respond(&self, code: ResponseCode) -> Message {
        response(&self.message, code)
    }

    /// The largest datagram the client takes.
    pub(crate) fn largest_datagram(&self) -> usize {
        let offered = self.message.edns.as_ref().map_or(PLAIN_DATAGRAM, Edns::max_payload);
        usize::from(offered.clamp(PLAIN_DATAGRAM, LARGEST_DATAGRAM))
    }
}

fn response(request: &Message, code: ResponseCode) -> Message {
    let mut response = Message::response(request.metadata.id, request.metadata.op_code);
    response.metadata.recursion_desired = request.metadata.recursion_desired;
    response.metadata.recursion_available = true;
    response.metadata.response_code = code;
    response.add_queries(request.queries.iter().cloned());
    if request.edns.is_some() {
        let mut edns = Edns::new();
        edns.set_max_payload(LARGEST_DATAGRAM);
        response.set_edns(edns);
    }
    response
}

/// A response to what starts like a request but cannot be read.
fn malformed(bytes: &[u8]) -> Option<Vec<u8>> {
    let id = u16::from_be_bytes(bytes.get(..2)?.try_into().ok()?);
    let is_response = bytes.get(2)? & 0x80 != 0;
    if is_response || bytes.len() < 12 {
        return None;
    }
    encode(&Message::error_msg(id, OpCode::Query, ResponseCode::FormErr))
}

/// The bytes of a message; `None` when it is too large for any.
pub(crate) fn encode(message: &Message) -> Option<Vec<u8>> {
    message.to_vec().ok()
}

/// The bytes of a message, cut down to `limit`: first what is merely useful goes, then answers from the end, with a
/// note that there is more over TCP. Clients that cannot do TCP still get some.
pub(crate) fn encode_within(mut message: Message, limit: usize) -> Option<Vec<u8>> {
    let bytes = encode(&message)?;
    if bytes.len() <= limit {
        return Some(bytes);
    }
    message.additionals.clear();
    loop {
        let bytes = encode(&message)?;
        if bytes.len() <= limit || message.answers.is_empty() {
            return Some(bytes);
        }
        message.metadata.truncation = true;
        // Records of one answer are about equally long: this comes close at once.
        let keep = message.answers.len() * limit / bytes.len();
        message.answers.truncate(keep.min(message.answers.len() - 1));
    }
}

/// Turns the order of addresses, so that clients that take the first spread over all.
pub(crate) fn rotate(records: &mut [Record], by: usize) {
    let is_address = |r: &Record| matches!(r.record_type(), RecordType::A | RecordType::AAAA);
    if let Some(start) = records.iter().position(is_address) {
        let length = records[start..].iter().take_while(|r| is_address(r)).count();
        records[start..start + length].rotate_left(by % length);
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use hickory_proto::rr::{Name, RData};

    use super::*;

    fn addresses(count: u32) -> Message {
        let name = Name::from_ascii("svc.ns.svc.cluster.local.").expect("name");
        let mut message = Message::response(1, OpCode::Query);
        message.add_query(Query::query(name.clone(), RecordType::A));
        for n in 0..count {
            message.add_answer(Record::from_rdata(
                name.clone(),
                5,
                RData::from(std::net::IpAddr::V4(Ipv4Addr::from(n))),
            ));
        }
        message
    }

    #[test]
    fn long_answers_are_cut_and_say_so() {
        for (count, limit, cut) in [(3, 512, false), (100, 512, true), (100, 1232, true), (60, 1232, false)] {
            let bytes = encode_within(addresses(count), limit).expect("bytes");
            assert!(bytes.len() <= limit, "{count} {limit}");
            let message = Message::from_vec(&bytes).expect("message");
            assert_eq!(message.metadata.truncation, cut, "{count} {limit}");
            assert!(cut == (message.answers.len() < count as usize));
            assert!(message.answers.len() > 20 || !cut, "as many as fit");
        }
    }

    #[test]
    fn what_is_no_request_is_not_answered_and_bad_ones_are_refused() {
        assert!(matches!(Request::read(b""), Err(None)));
        assert!(matches!(Request::read(&[0; 11]), Err(None)));
        let mut response = addresses(1);
        response.metadata.message_type = MessageType::Response;
        assert!(matches!(Request::read(&response.to_vec().expect("bytes")), Err(None)), "no answers to answers");
        let code = |bytes: &[u8]| match Request::read(bytes) {
            Err(Some(bytes)) => Message::from_vec(&bytes).expect("response").metadata.response_code,
            _ => panic!("expected a refusal"),
        };
        let mut cut = Message::query();
        cut.add_query(Query::query(Name::from_ascii("a.b.").expect("name"), RecordType::A));
        let bytes = cut.to_vec().expect("bytes");
        assert_eq!(code(&bytes[..bytes.len() - 3]), ResponseCode::FormErr);
        let mut transfer = Message::query();
        transfer.add_query(Query::query(Name::from_ascii("a.b.").expect("name"), RecordType::AXFR));
        assert_eq!(code(&transfer.to_vec().expect("bytes")), ResponseCode::Refused);
        assert_eq!(code(&Message::query().to_vec().expect("bytes")), ResponseCode::FormErr, "no question");
    }

    #[test]
    fn only_addresses_rotate() {
        let mut message = addresses(3);
        rotate(&mut message.answers, 1);
        let last: Vec<String> = message.answers.iter().map(|r| r.data.to_string()).collect();
        assert_eq!(last, ["0.0.0.1", "0.0.0.2", "0.0.0.0"]);
        rotate(&mut [], 5);
    }
}
