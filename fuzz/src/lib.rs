//! What is fuzzed, and what must hold of it besides that nothing panics. The same functions are driven by libFuzzer
//! (`fuzz_targets/`, which needs a nightly compiler) and by a seeded smoke test on stable (`tests/smoke.rs`).

mod api;
mod documents;
mod expressions;
mod images;
mod mutate;
mod requests;
mod words;

pub use mutate::mutated;

/// Something that takes bytes from outside.
pub struct Target {
    /// Name, and that of the file in `fuzz_targets/`.
    pub name: &'static str,
    /// Takes any bytes; panics where something that must hold does not.
    pub take: fn(&[u8]),
    /// Inputs to begin with.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// Pieces the inputs are made of.
    pub dictionary: &'static [&'static str],
}

/// All targets.
pub const TARGETS: &[Target] = &[
    Target { name: "json", take: documents::json, seeds: documents::json_seeds, dictionary: documents::JSON },
    Target { name: "yaml", take: documents::yaml, seeds: documents::yaml_seeds, dictionary: documents::YAML },
    Target {
        name: "json_patch",
        take: documents::json_patch,
        seeds: documents::json_patch_seeds,
        dictionary: documents::JSON_PATCH,
    },
    Target {
        name: "merge_patch",
        take: documents::merge_patch,
        seeds: documents::merge_patch_seeds,
        dictionary: documents::JSON,
    },
    Target {
        name: "strategic_merge_patch",
        take: documents::strategic_merge_patch,
        seeds: documents::strategic_merge_patch_seeds,
        dictionary: documents::STRATEGIC,
    },
    Target {
        name: "managed_fields",
        take: documents::managed_fields,
        seeds: documents::managed_fields_seeds,
        dictionary: documents::FIELDS,
    },
    Target {
        name: "protobuf",
        take: documents::protobuf,
        seeds: requests::objects_seeds,
        dictionary: documents::PROTOBUF,
    },
    Target {
        name: "label_selector",
        take: words::label_selector,
        seeds: words::label_selector_seeds,
        dictionary: words::SELECTORS,
    },
    Target {
        name: "field_selector",
        take: words::field_selector,
        seeds: words::field_selector_seeds,
        dictionary: words::SELECTORS,
    },
    Target { name: "quantity", take: words::quantity, seeds: words::quantity_seeds, dictionary: words::QUANTITIES },
    Target {
        name: "expression",
        take: expressions::expression,
        seeds: expressions::expression_seeds,
        dictionary: expressions::PIECES,
    },
    Target { name: "objects", take: requests::objects, seeds: requests::objects_seeds, dictionary: requests::OBJECTS },
    Target { name: "patches", take: requests::patches, seeds: requests::patches_seeds, dictionary: requests::PATCHES },
    Target {
        name: "requests",
        take: requests::requests,
        seeds: requests::requests_seeds,
        dictionary: requests::QUERIES,
    },
    Target {
        name: "continue_token",
        take: requests::continue_token,
        seeds: requests::continue_token_seeds,
        dictionary: requests::TOKENS,
    },
    Target { name: "image_archive", take: images::archive, seeds: images::archive_seeds, dictionary: images::TAR },
    Target { name: "image_layer", take: images::layer, seeds: images::layer_seeds, dictionary: images::TAR },
];

/// Gives `data` to the target of this name.
///
/// # Panics
/// Where there is no such target, and where the target finds something wrong.
pub fn run(name: &str, data: &[u8]) {
    let target = TARGETS.iter().find(|t| t.name == name).unwrap_or_else(|| panic!("no target is called {name}"));
    (target.take)(data);
}
