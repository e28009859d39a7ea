//! Claiming: a controller takes over objects its selector matches and lets go those it no longer does.

use gantry_api::kind::Kind;
use gantry_api::meta::object::Meta;
use gantry_client::{Api, Client, PatchParams};
use gantry_reconcile::Error;
use gantry_reconcile::owner::{Claim, adoption, claim, release};
use std::sync::Arc;

/// Those of `candidates` that belong to `owner`, after adopting what `matches` and releasing what no longer does.
///
/// # Errors
/// Where the server refuses a patch; nothing is returned then, and all is tried again later.
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
    let (mut ours, mut errors, mut alive) = (Vec::new(), Vec::new(), None);
    for object in candidates {
        let (name, uid, key) = (object.meta().name(), object.meta().uid(), object.meta().key());
        match claim(meta, object.meta(), matches(&object)) {
            Claim::Ignore => {}
            Claim::Keep => ours.push(object),
            Claim::Adopt => {
                let alive = match alive {
                    Some(a) => a,
                    None => *alive.insert(is_alive(client, owner).await?),
                };
                if !alive {
                    continue;
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

/// Whether the owner still exists and is not being deleted, by the server's word and not the cache's.
async fn is_alive<O: Kind>(client: &Client, owner: &O) -> Result<bool, Error> {
    let meta = owner.meta();
    let api = Api::<O>::namespaced(client.clone(), meta.namespace());
    let fresh = api.get_opt(meta.name()).await;
    let fresh = fresh.map_err(|e| Error::api(format!("get {} {}", O::INFO.singular, meta.key()), e))?;
    Ok(fresh.is_some_and(|f| f.meta().uid == meta.uid && f.meta().deletion_timestamp.is_none()))
}
