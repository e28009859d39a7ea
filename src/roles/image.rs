//! `gantry image`: images of this node, in the store the agent uses. Works beside a running agent.

use crate::cli::ImageCommand;
use crate::config::DataDirOption;
use anyhow::{Context, Result, bail};
use gantry_container::image_service::{Image, ImageService, RegistryAuth};
use gantry_container::images::{ImageStore, ImageStoreConfig};
use std::path::{Path, PathBuf};

/// Runs one of the image commands.
///
/// # Errors
/// Names the image, archive entry or file in the way.
pub async fn run(command: ImageCommand) -> Result<()> {
    super::require_root("gantry image")?;
    match command {
        ImageCommand::Import { data, file, name } => {
            let images = open(&data, &[])?
                .import(&file, name.as_deref())
                .await
                .with_context(|| format!("cannot import {}", file.display()))?;
            for image in images {
                let names = if image.tags.is_empty() { display_name(&image).to_owned() } else { image.tags.join(", ") };
                println!("imported {names} ({})", short(&image.id));
            }
        }
        ImageCommand::Ls { data } => list(&open(&data, &[])?).await?,
        ImageCommand::Rm { data, images } => {
            let store = open(&data, &[])?;
            for image in images {
                store.remove(&image).await.with_context(|| format!("cannot remove {image}"))?;
                println!("removed {image}");
            }
        }
        ImageCommand::Inspect { data, image } => inspect(&open(&data, &[])?, &image).await?,
        ImageCommand::Pull { data, image, insecure_registry, credentials } => {
            let auth = match credentials.as_deref().map(|c| c.split_once(':')) {
                None => RegistryAuth::Anonymous,
                Some(Some((user, password))) => {
                    RegistryAuth::Basic { username: user.to_owned(), password: password.to_owned() }
                }
                Some(None) => bail!("--credentials: expected USER:PASSWORD"),
            };
            let pulled = open(&data, &insecure_registry)?
                .pull(&image, &auth, None)
                .await
                .with_context(|| format!("cannot pull {image}"))?;
            println!("pulled {image} ({})", short(&pulled.id));
        }
    }
    Ok(())
}

/// Opens the node's image store.
///
/// # Errors
/// Where it cannot be read or made.
pub fn open_store(data_dir: &Path, insecure: &[String]) -> Result<ImageStore> {
    open_beside(data_dir, insecure, None)
}

fn open_beside(data_dir: &Path, insecure: &[String], users: Option<PathBuf>) -> Result<ImageStore> {
    let dir = data_dir.join("node").join("images");
    ImageStore::open(ImageStoreConfig { dir, insecure_registries: insecure.to_vec(), users })
        .with_context(|| format!("cannot open the images in {}", data_dir.display()))
}

fn open(data: &DataDirOption, insecure: &[String]) -> Result<ImageStore> {
    open_beside(&data.data_dir, insecure, Some(data.data_dir.join("node").join("runtime")))
}

async fn list(store: &ImageStore) -> Result<()> {
    let mut rows = vec![["IMAGE".to_owned(), "ID".to_owned(), "SIZE".to_owned()]];
    for image in store.list().await? {
        let size = format!("{:.1} MB", image.size as f64 / 1e6);
        let names = if image.tags.is_empty() { image.digests.clone() } else { image.tags.clone() };
        for name in names {
            rows.push([name, short(&image.id).to_owned(), size.clone()]);
        }
    }
    let width = |i: usize| rows.iter().map(|r| r[i].len()).max().unwrap_or(0);
    let (name, id) = (width(0), width(1));
    for row in &rows {
        println!("{:name$}  {:id$}  {}", row[0], row[1], row[2]);
    }
    Ok(())
}

async fn inspect(store: &ImageStore, reference: &str) -> Result<()> {
    let Some(image) = store.status(reference).await? else { bail!("image {reference} is not on this node") };
    let config = store.config(reference).await?;
    let document = serde_json::json!({
        "id": image.id,
        "tags": image.tags,
        "digests": image.digests,
        "sizeBytes": image.size,
        "architecture": config.architecture,
        "created": config.created,
        "entrypoint": config.entrypoint,
        "cmd": config.cmd,
        "env": config.env,
        "workingDir": config.working_dir,
        "user": config.user,
        "stopSignal": config.stop_signal,
        "volumes": config.volumes,
        "labels": config.labels,
    });
    println!("{}", serde_json::to_string_pretty(&document)?);
    Ok(())
}

fn display_name(image: &Image) -> &str {
    image.tags.first().or(image.digests.first()).unwrap_or(&image.id)
}

fn short(id: &str) -> &str {
    let digits = id.strip_prefix("sha256:").unwrap_or(id);
    digits.get(..12).unwrap_or(digits)
}
