//! Claiming: a controller takes over objects its selector matches and lets go those it no longer does.

use gantry_api::kind::Kind;
use gantry_api::meta::object::Meta;
use gantry_client::{Api, Client, PatchParams};
use gantry_reconcile::owner::{Claim, adoption, claim, release};
use gantry_reconcile::{Error, Expectations};
use std::sync::Arc;

/// Those of `candidates` that belong to `owner`, after adopting what `matches` and releasing what no longer does.
///
/// # Errors
/// Where the server refuses a patch, or the owner is not there any more to adopt anything; nothing is returned then, and
/// all is tried again later.
pub async fn claim_all<O: Kind, T: Kind>(
    client: &Client,
    owner: &O,
    candidates: Vec<Arc<T>>,
    matches: impl Fn(&T) -> bool,
) -> Result<Vec<Arc<T>>, Error> {
    let meta = owner.meta();
    let api = Api::<T>::namespaced(client.clone(), meta.namespace());
    let params = PatchParams::default();
    let what = T::INFO.singular;
    let (mut ours, mut errors, mut alive) = (Vec::new(), Vec::new(), false);
    for object in candidates {
        let decision = claim(meta, object.meta(), matches(&object));
        if decision == Claim::Keep {
            ours.push(object);
            continue;
        }
        let (name, uid, key) = (object.meta().name(), object.meta().uid(), object.meta().key());
        match decision {
            Claim::Ignore | Claim::Keep => {}
            Claim::Adopt => {
                if !alive {
                    ensure_alive(client, owner).await?;
                    alive = true;
                }
                match api.patch(name, &params, &adoption(owner, uid)).await {
                    Ok(adopted) => ours.push(Arc::new(adopted)),
                    Err(e) if e.is("NotFound") => {}
                    Err(e) => errors.push(Error::api(format!("adopt {what} {key}"), e)),
                }
            }
            Claim::Release => match api.patch(name, &params, &release(meta.uid(), uid)).await {
                Ok(_) => {}
                // Gone, or a new object of the same name: nothing to let go.
                Err(e) if e.is("NotFound") || e.is("Invalid") => {}
                Err(e) => errors.push(Error::api(format!("release {what} {key}"), e)),
            },
        }
    }
    Error::collect(errors)?;
    Ok(ours)
}

/// Makes sure that the owner still exists and is not being deleted, by the server's word and not the cache's. One that may
/// not adopt must not go on without what it would have adopted either: it would make up for what is not missing.
///
/// # Errors
/// Where it is gone or going, or the server does not answer.
pub async fn ensure_alive<O: Kind>(client: &Client, owner: &O) -> Result<(), Error> {
    let (meta, kind) = (owner.meta(), O::INFO.kind);
    let api = Api::<O>::namespaced(client.clone(), meta.namespace());
    let fresh = api.get(meta.name()).await;
    let fresh =
        fresh.map_err(|e| Error::api(format!("can't recheck DeletionTimestamp of {kind} {}", meta.key()), e))?;
    let there = fresh.meta();
    if there.uid != meta.uid {
        let (got, wanted) = (there.uid(), meta.uid());
        return Err(Error::Other(format!("original {kind} {} is gone: got uid {got}, wanted {wanted}", meta.key())));
    }
    match &there.deletion_timestamp {
        Some(at) => Err(Error::Other(format!("{} has just been deleted at {}", meta.key(), at.0))),
        None => Ok(()),
    }
}

/// Before anything is made in the place of what an owner has lost: makes sure that the owner is there. What goes may go
/// because its owner does, and caches of two kinds need not tell of both at once: the collector would take away what is
/// made, over and over. `fewer` is whether there is less than the owner's status tells of.
///
/// # Errors
/// As [`ensure_alive`].
pub async fn ensure_alive_after_loss<O: Kind>(
    client: &Client,
    owner: &O,
    expectations: &Expectations,
    fewer: bool,
) -> Result<(), Error> {
    let key = owner.meta().key();
    // Before the question: what goes after the answer is another loss.
    if !expectations.take_lost(&key) && !fewer {
        return Ok(());
    }
    let alive = ensure_alive(client, owner).await;
    if alive.is_err() {
        expectations.lost(&key);
    }
    alive
}
