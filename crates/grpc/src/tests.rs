//! Both sides over a socket.

use crate::{Answer, Channel, Code, Message, Service, Status, Target, serve};
use async_trait::async_trait;
use bytes::Bytes;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::UnixListener;
use tokio_util::sync::CancellationToken;

#[derive(Clone, PartialEq, prost::Message)]
struct Word {
    #[prost(string, tag = "1")]
    text: String,
}

struct Echo;

#[async_trait]
impl Service for Echo {
    async fn call(&self, method: &str, request: Bytes) -> Result<Answer, Status> {
        let word = Word::decode(request).map_err(|e| Status::new(Code::INTERNAL, e.to_string()))?;
        match method {
            "/t.Echo/Say" => Ok(Answer::of(&word)),
            "/t.Echo/Spell" => {
                let (sender, receiver) = tokio::sync::mpsc::channel(1);
                tokio::spawn(async move {
                    for letter in word.text.chars() {
                        let _ = sender.send(Word { text: letter.to_string() }.encode_to_vec().into()).await;
                    }
                });
                Ok(Answer::Many(receiver))
            }
            "/t.Echo/Sleep" => std::future::pending().await,
            _ => Err(Status::new(Code::UNIMPLEMENTED, format!("no method {method}, 100% sure\n"))),
        }
    }
}

const PATIENT: Duration = Duration::from_secs(30);

fn word(text: &str) -> Word {
    Word { text: text.into() }
}

#[tokio::test]
async fn calls_are_answered_streamed_and_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("s");
    let stop = CancellationToken::new();
    tokio::spawn(serve(UnixListener::bind(&path).unwrap(), Arc::new(Echo), stop.clone()));
    let channel = Channel::new(Target::Unix(path));
    let long = "x".repeat(100_000);
    for text in ["", "hello", &long] {
        let answer: Word = channel.unary("/t.Echo/Say", &word(text), PATIENT).await.unwrap();
        assert_eq!(answer.text, text);
    }
    let mut letters = channel.stream::<_, Word>("/t.Echo/Spell", &word("abc")).await.unwrap();
    let mut seen = String::new();
    while let Some(letter) = letters.message().await.unwrap() {
        seen += &letter.text;
    }
    assert_eq!(seen, "abc");
    let refused = channel.unary::<_, Word>("/t.Echo/Nothing", &word("a"), PATIENT).await.unwrap_err();
    let shown = "rpc error: code = Unimplemented desc = no method /t.Echo/Nothing, 100% sure\n";
    assert_eq!(refused.to_string(), shown);
    let late = channel.unary::<_, Word>("/t.Echo/Sleep", &word("a"), Duration::from_millis(50)).await.unwrap_err();
    assert_eq!(late.to_string(), "rpc error: code = DeadlineExceeded desc = context deadline exceeded");
    let huge = channel.unary::<_, Word>("/t.Echo/Say", &word(&"x".repeat(5 << 20)), PATIENT).await.unwrap_err();
    assert!(matches!(huge.code, Code::INTERNAL | Code::RESOURCE_EXHAUSTED | Code::UNAVAILABLE), "{huge}");
}

#[tokio::test]
async fn a_server_that_is_not_there_yet_is_waited_for_only_on_demand() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("s");
    let dialed = format!(
        "connection error: desc = \"transport: Error while dialing: dial unix {}: connect: no such file or directory\"",
        path.display()
    );
    let at_once = Channel::new(Target::Unix(path.clone()));
    let error = at_once.unary::<_, Word>("/t.Echo/Say", &word("a"), PATIENT).await.unwrap_err();
    assert_eq!(error, Status::new(Code::UNAVAILABLE, dialed.as_str()));
    let patient = Channel::new(Target::Unix(path.clone())).wait_for_ready();
    let error = patient.unary::<_, Word>("/t.Echo/Say", &word("a"), Duration::from_millis(80)).await.unwrap_err();
    assert_eq!(error, Status::new(Code::DEADLINE_EXCEEDED, format!("latest balancer error: {dialed}")));
    let (asked, sent) = (word("a"), CancellationToken::new());
    let call = patient.unary::<_, Word>("/t.Echo/Say", &asked, PATIENT);
    let server = async {
        tokio::task::yield_now().await;
        tokio::spawn(serve(UnixListener::bind(&path).unwrap(), Arc::new(Echo), sent.clone()));
    };
    let (answer, ()) = tokio::join!(call, server);
    assert_eq!(answer.unwrap().text, "a");
    // A server that was started anew is found again.
    sent.cancel();
    while std::os::unix::net::UnixStream::connect(&path).is_ok() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    std::fs::remove_file(&path).unwrap();
    tokio::spawn(serve(UnixListener::bind(&path).unwrap(), Arc::new(Echo), CancellationToken::new()));
    assert_eq!(patient.unary::<_, Word>("/t.Echo/Say", &word("b"), PATIENT).await.unwrap().text, "b");
}
