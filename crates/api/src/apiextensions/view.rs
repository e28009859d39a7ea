//! A definition's spec as upstream's rules see it: what all versions have in common stands at the top.
//!
//! Upstream validates an internal form in which identical schemas, subresources, columns and selectable fields move
//! from
//! the versions to the spec. Its errors name the places they have there (`spec.validation`, not
//! `spec.versions[0].schema`), so the same move is made here before anything is judged.

use crate::meta::field::Path;
use crate::meta::object::semantically_equal;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceColumnDefinition, CustomResourceDefinitionSpec, CustomResourceDefinitionVersion,
    CustomResourceSubresources, JSONSchemaProps, SelectableField,
};

/// The parts a version has of its own, or all versions have in common.
#[derive(Clone, Copy, Default)]
pub(super) struct Parts<'a> {
    /// The schema: outer None where `schema` is missing, inner where it is empty.
    pub validation: Option<Option<&'a JSONSchemaProps>>,
    pub subresources: Option<&'a CustomResourceSubresources>,
    pub columns: &'a [CustomResourceColumnDefinition],
    pub selectable: &'a [SelectableField],
}

impl<'a> Parts<'a> {
    fn of(v: &'a CustomResourceDefinitionVersion) -> Self {
        Self {
            validation: v.schema.as_ref().map(|s| s.open_api_v3_schema.as_ref()),
            subresources: v.subresources.as_ref(),
            columns: v.additional_printer_columns.as_deref().unwrap_or_default(),
            selectable: v.selectable_fields.as_deref().unwrap_or_default(),
        }
    }

    pub fn schema(&self) -> Option<&'a JSONSchemaProps> {
        self.validation.flatten()
    }
}

/// The moved spec.
pub(super) struct View<'a> {
    pub common: Parts<'a>,
    /// What each version still has of its own.
    pub versions: Vec<Parts<'a>>,
}

impl<'a> View<'a> {
    pub fn of(spec: &'a CustomResourceDefinitionSpec) -> Self {
        let mut versions: Vec<Parts<'a>> = spec.versions.iter().map(Parts::of).collect();
        let mut common = Parts::default();
        if let Some(first) = spec.versions.first() {
            let all = |same: &dyn Fn(&CustomResourceDefinitionVersion) -> bool| spec.versions.iter().all(same);
            let head = versions[0];
            if all(&|v| semantically_equal(&v.schema, &first.schema)) {
                common.validation = head.validation;
                versions.iter_mut().for_each(|v| v.validation = None);
            }
            if all(&|v| semantically_equal(&v.subresources, &first.subresources)) {
                common.subresources = head.subresources;
                versions.iter_mut().for_each(|v| v.subresources = None);
            }
            if all(&|v| semantically_equal(&v.additional_printer_columns, &first.additional_printer_columns)) {
                common.columns = head.columns;
                versions.iter_mut().for_each(|v| v.columns = &[]);
            }
            if all(&|v| semantically_equal(&v.selectable_fields, &first.selectable_fields)) {
                common.selectable = head.selectable;
                versions.iter_mut().for_each(|v| v.selectable = &[]);
            }
        }
        Self { common, versions }
    }

    /// Every schema there is, with the path of its root: the common one last, as upstream looks at it last.
    pub fn schemas(&self) -> Vec<(Path, &'a JSONSchemaProps)> {
        let root = Path::new("spec");
        let of_version = |(i, v): (usize, &Parts<'a>)| {
            Some((root.child("versions").index(i).child("schema").child("openAPIV3Schema"), v.schema()?))
        };
        let mut out: Vec<_> = self.versions.iter().enumerate().filter_map(of_version).collect();
        out.extend(self.common.schema().map(|s| (root.child("validation").child("openAPIV3Schema"), s)));
        out
    }

    /// Whether the status subresource is on: in the version with this index, or anywhere where there is none.
    pub fn has_status(&self, version: Option<usize>) -> bool {
        let on = |p: &Parts<'_>| p.subresources.is_some_and(|s| s.status.is_some());
        let own = self.versions.iter().any(|v| v.subresources.is_some());
        match version {
            Some(i) if own => on(&self.versions[i]),
            Some(_) => on(&self.common),
            None => on(&self.common) || self.versions.iter().any(on),
        }
    }
}
