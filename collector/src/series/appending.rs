//! Layouts in the making: series of a page, with the families that it describes.
//!
//! - *In:* new series by the numbers of their texts, or series that a layout has. *Out:* a [`Layout`]. *Bound:* 8 bytes per text of the page.
//! - *When full:* the page's limits have refused it before.

use std::sync::Arc;

use sample::{FamilyRef, KindRef, Layout, LayoutBuilder, Series, TextRef};

use super::family::{Families, Family};
use super::fresh::Fresh;

/// A layout in the making, and its last series' name and family.
pub(super) struct Appending {
    builder: LayoutBuilder,
    name: String,
    family: Option<FamilyRef>,
    family_name: String,
    /// Of the page's texts, by number, those that the layout has.
    texts: Vec<Option<TextRef>>,
    /// What the page's last series has in common with its neighbours: the page's number, and the layout's.
    kind: Option<(u32, KindRef)>,
    values: Vec<TextRef>,
}

impl Appending {
    /// Begins with the series that a layout has.
    pub(super) fn to(base: &Arc<Layout>) -> Self {
        let builder = LayoutBuilder::append_to(base);
        let (name, family_name) = (String::new(), String::new());
        Self { builder, name, family: None, family_name, texts: Vec::new(), kind: None, values: Vec::new() }
    }

    /// Makes room for so many texts, bytes of them, and values.
    pub(super) fn reserve(&mut self, [texts, bytes, values]: [usize; 3]) {
        self.builder.reserve(texts, bytes, values);
    }

    pub(super) fn build(self) -> Layout {
        self.builder.build()
    }

    /// Appends a new series of a page.
    ///
    /// *Limits:* the layout's other series are of the same page: their texts are told by the page's numbers.
    pub(super) fn fresh(&mut self, families: &Families, fresh: &mut Fresh, index: usize) {
        let kind = match (self.kind, fresh.kind_of(index)) {
            (Some((known, reference)), kind) if known == kind => reference,
            (_, kind) => self.kind(families, fresh, kind),
        };
        let Self { builder, texts, values, .. } = self;
        values.clear();
        values.extend(fresh.values(index).iter().map(|value| text(builder, texts, fresh, *value)));
        builder.row(kind, values);
    }

    fn kind(&mut self, families: &Families, fresh: &mut Fresh, kind: u32) -> KindRef {
        let (name, _) = fresh.kind(kind);
        let family = self.fresh_family(families, fresh, name);
        let (name, labels) = fresh.kind(kind);
        let Self { builder, texts, values: names, .. } = self;
        let name = text(builder, texts, fresh, name);
        names.clear();
        names.extend(labels.iter().map(|label| text(builder, texts, fresh, *label)));
        let reference = builder.kind(family, name, names.iter().copied());
        self.kind = Some((kind, reference));
        reference
    }

    /// Appends a series without labels and without metadata.
    pub(super) fn bare(&mut self, name: &str) {
        let family = self.family_of(&Families::default(), name);
        self.builder.series(family, name, std::iter::empty());
    }

    /// Appends a series of another layout, with the family that the page describes, if it does.
    pub(super) fn describe(&mut self, families: &Families, series: Series<'_>) {
        let known = series.family();
        let known = Family { name: known.name, kind: known.kind, help: known.help, unit: known.unit };
        let family = self.family(&families.described(series.name()).unwrap_or(known));
        self.builder.series(family, series.name(), series.labels());
    }

    /// The family of a page's series, whose texts are numbered as all of the page's.
    fn fresh_family(&mut self, families: &Families, fresh: &mut Fresh, name: u32) -> FamilyRef {
        if let Some(reference) = self.family.filter(|_| self.name == fresh.text(name)) {
            return reference;
        }
        fresh.text(name).clone_into(&mut self.name);
        let family = families.of(&self.name);
        if let Some(reference) = self.family.filter(|_| self.family_name == family.name) {
            return reference;
        }
        family.name.clone_into(&mut self.family_name);
        let numbers = [family.name, family.help, family.unit].map(|text| fresh.number(families.hash(), text));
        self.texts.resize(fresh.texts(), None);
        let [name, help, unit] = numbers.map(|number| text(&mut self.builder, &mut self.texts, fresh, number));
        let reference = self.builder.family_of(name, family.kind, help, unit);
        self.family = Some(reference);
        reference
    }

    fn family_of(&mut self, families: &Families, name: &str) -> FamilyRef {
        match self.family {
            Some(reference) if self.name == name => reference,
            _ => {
                name.clone_into(&mut self.name);
                self.family(&families.of(name))
            }
        }
    }

    fn family(&mut self, family: &Family<'_>) -> FamilyRef {
        match self.family {
            Some(reference) if self.family_name == family.name => reference,
            _ => {
                let reference = self.builder.family(family.name, family.kind, family.help, family.unit);
                family.name.clone_into(&mut self.family_name);
                self.family = Some(reference);
                reference
            }
        }
    }
}

/// The layout's text for one of the page's.
fn text(builder: &mut LayoutBuilder, texts: &mut [Option<TextRef>], fresh: &Fresh, number: u32) -> TextRef {
    *texts[number as usize].get_or_insert_with(|| builder.new_text(fresh.text(number)))
}
