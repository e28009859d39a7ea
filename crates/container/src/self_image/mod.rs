//! The program of the built-in image: a few small commands to try a cluster with. No async runtime.

mod files;
mod grpc;
mod http;
mod load;
mod lookup;
mod serve;
mod udp;

use std::ffi::OsString;
use std::io::Write;
use std::time::Duration;

const USAGE: &str = "\
usage: self COMMAND
  serve [--port 8080] [--delay-ready SECONDS]   small web server: / /healthz /readyz /env /headers /hostname
                                                /echo /exit?code=N /files?path=P
  echo WORD…                print words
  env                       print the environment
  sleep [SECONDS|inf]       do nothing
  loop SECONDS LINE…        print a line again and again
  trap                      ignore SIGTERM
  exit CODE                 end with a code
  burn cpu SECONDS|inf      use one CPU
  burn memory MEBIBYTES     hold memory
  id                        user, groups, capabilities
  ls PATH                   mode, user, group, size, name
  cat FILE…                 print files
  write FILE TEXT           write a file
  get [--ca FILE] [--token FILE] [--timeout SECONDS] URL
                            print what an http:// or https:// URL answers
  nslookup NAME             resolve a name as /etc/resolv.conf says
  tcp-echo PORT             send back what comes, over TCP and UDP
  udp HOST:PORT TEXT…       send a datagram, print the answer
  grpc-health [--not-serving] PORT
                            answer gRPC health checks";

/// Entry point of `self`; `args` are what follows that word.
pub fn self_main(args: impl Iterator<Item = OsString>) -> ! {
    let args: Vec<String> = args.map(|a| a.to_string_lossy().into_owned()).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let code = match run(&words) {
        Ok(code) => code,
        Err(message) => {
            eprintln!("self: {message}");
            1
        }
    };
    // An error here means nobody reads.
    let _ = std::io::stdout().flush();
    std::process::exit(code)
}

type Outcome = Result<i32, String>;

fn run(args: &[&str]) -> Outcome {
    match args {
        ["serve", rest @ ..] => serve::serve(rest),
        ["echo", words @ ..] => print(&format!("{}\n", words.join(" "))),
        ["env"] => {
            let mut list: Vec<String> = std::env::vars_os()
                .map(|(k, v)| format!("{}={}\n", k.to_string_lossy(), v.to_string_lossy()))
                .collect();
            list.sort();
            print(&list.concat())
        }
        ["sleep"] | ["sleep", "inf"] => sleep_until_told(),
        ["sleep", seconds] => {
            std::thread::sleep(duration(seconds)?);
            Ok(0)
        }
        ["loop", seconds, words @ ..] => {
            let (pause, line) = (duration(seconds)?, format!("{}\n", words.join(" ")));
            default_sigterm();
            loop {
                print(&line)?;
                std::thread::sleep(pause);
            }
        }
        ["trap"] => {
            // SAFETY: ignoring a signal has no memory effects.
            unsafe { libc::signal(libc::SIGTERM, libc::SIG_IGN) };
            print("ignoring SIGTERM\n")?;
            loop {
                std::thread::sleep(Duration::from_secs(3600));
            }
        }
        ["exit", code] => code.parse().map_err(|_| format!("{code:?} is not an exit code")),
        ["burn", what, amount] => load::burn(what, amount),
        ["id"] => files::id(),
        ["ls", path] => files::list(path),
        ["cat", files @ ..] if !files.is_empty() => files::cat(files),
        ["write", file, text @ ..] => files::write(file, &text.join(" ")),
        ["get", rest @ ..] => http::get(rest),
        ["nslookup", name] => lookup::nslookup(name),
        ["grpc-health", rest @ ..] => grpc::health(rest),
        ["udp", target, text @ ..] => udp::ask(target, &text.join(" ")),
        ["tcp-echo", port] => serve::tcp_echo(port),
        ["help" | "--help" | "-h"] => print(&format!("{USAGE}\n")),
        _ => {
            eprintln!("{USAGE}");
            Ok(2)
        }
    }
}

fn print(text: &str) -> Outcome {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(|e| format!("stdout: {e}"))?;
    Ok(0)
}

fn duration(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| format!("{text:?} is not a number of seconds"))?;
    Duration::try_from_secs_f64(seconds).map_err(|e| format!("{text:?}: {e}"))
}

/// As process 1 of a namespace a program gets only signals it handles; without this, each stop would last its whole
/// grace period.
fn default_sigterm() {
    extern "C" fn end(_: libc::c_int) {
        // SAFETY: async-signal-safe.
        unsafe { libc::_exit(143) }
    }
    let handler: extern "C" fn(libc::c_int) = end;
    // SAFETY: the handler only calls _exit.
    unsafe {
        libc::signal(libc::SIGTERM, handler as libc::sighandler_t);
        libc::signal(libc::SIGINT, handler as libc::sighandler_t);
    }
}

fn sleep_until_told() -> Outcome {
    default_sigterm();
    loop {
        std::thread::sleep(Duration::from_secs(86_400));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes() {
        assert_eq!(run(&["exit", "7"]), Ok(7));
        assert!(run(&["exit", "x"]).is_err());
        assert_eq!(run(&["no-such-command"]), Ok(2));
        assert!(duration("-1").is_err());
        assert_eq!(duration("0.5"), Ok(Duration::from_millis(500)));
    }
}
