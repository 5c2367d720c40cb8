//! What an overlay knows, and what follows from it: no I/O.
//!
//! *In*: objects and contents as they change; the file's configuration. *Out*: the layer, and a verdict per object. *Bound*: the objects. *When full*:
//! does not apply.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use config::object::{self, Entries, Ground, Part, Reference, Store};
use config::{Config, Kinds, Problem};

use super::memory::Remembered;
use super::ours::{self, Around};
use super::{Layer, Options, Said, Verdict};
use crate::operator;
use crate::overlay::object::{Becomes, Id, Kind, Object, Objects, Refusal};

/// Problems of an object that its condition names. Larger: a message nobody reads to its end; smaller: one more round for an object that is wrong
/// everywhere.
const PROBLEMS_SAID: usize = 3;

/// Reasons for which an object is wished to do nothing: what it was before does not go on.
pub(super) const WISHED: [&str; 2] = ["Disabled", "NoDiscovery"];

pub(super) struct State {
    kinds: Kinds,
    variables: BTreeMap<String, String>,
    allows_files: bool,
    own_namespace: String,
    namespaces: Vec<String>,
    folder: PathBuf,
    objects: Objects,
    /// By namespace, store and name; none: there is no such thing.
    contents: BTreeMap<(String, Store, String), Option<BTreeMap<String, String>>>,
    good: BTreeMap<Id, Good>,
    verdicts: BTreeMap<Id, Verdict>,
    references: BTreeSet<(String, Store, String)>,
    /// What was checked last, and against which file.
    file: Option<Arc<Config>>,
}

/// An object in use.
struct Good {
    remembered: Remembered,
    part: Part,
}

impl State {
    pub(super) fn new(options: &Options, own_namespace: String, folder: PathBuf) -> Self {
        Self {
            kinds: options.kinds.clone(),
            variables: options.variables.clone(),
            allows_files: options.kubernetes.allow_local_files,
            own_namespace,
            namespaces: options.kubernetes.namespaces.clone(),
            folder,
            objects: BTreeMap::new(),
            contents: BTreeMap::new(),
            good: BTreeMap::new(),
            verdicts: BTreeMap::new(),
            references: BTreeSet::new(),
            file: None,
        }
    }

    /// Objects of an earlier process, until they are read again.
    pub(super) fn remember(&mut self, objects: Vec<Remembered>) {
        for remembered in objects {
            let id = remembered.object.id.clone();
            self.objects.insert(id.clone(), Arc::new(remembered.object.clone()));
            for (Reference { store, name, key }, content) in &remembered.contents {
                let of = self.contents.entry((id.namespace.clone(), *store, name.clone())).or_insert_with(|| Some(BTreeMap::new()));
                of.get_or_insert_default().insert(key.clone(), content.clone());
            }
            // It is checked again before it is used.
            self.good.insert(id, Good { remembered, part: Part::default() });
        }
    }

    /// All objects of a kind, in one namespace or in all.
    pub(super) fn listed(&mut self, kind: Kind, namespace: Option<&str>, objects: Vec<Object>) {
        let is_of = |id: &Id| id.kind == kind && namespace.is_none_or(|namespace| id.namespace == namespace);
        self.objects.retain(|id, _| !is_of(id));
        self.objects.extend(objects.into_iter().map(|object| (object.id.clone(), Arc::new(object))));
    }

    /// An object that is new or was written; whether it says anything else now.
    pub(super) fn changed(&mut self, object: Object) -> bool {
        let is_other = self.objects.get(&object.id).is_none_or(|known| known.differs(&object));
        self.objects.insert(object.id.clone(), Arc::new(object));
        is_other
    }

    pub(super) fn gone(&mut self, id: &Id) {
        self.objects.remove(id);
    }

    pub(super) fn contents(&mut self, namespace: String, store: Store, name: String, contents: Option<BTreeMap<String, String>>) {
        self.contents.insert((namespace, store, name), contents);
    }

    /// Secrets and ConfigMaps that objects named when they were last read: namespace, store, name.
    pub(super) fn references(&self) -> BTreeSet<(String, Store, String)> {
        self.references.clone()
    }

    /// What is remembered of the objects in use.
    pub(super) fn remembered(&self) -> Vec<&Remembered> {
        self.good.values().map(|good| &good.remembered).collect()
    }

    pub(super) fn said(&self) -> Said {
        Said { objects: self.objects.clone(), verdicts: self.verdicts.clone(), own_namespace: self.own_namespace.clone() }
    }

    /// Reads every object, checks those that changed, and lays what is good over the file.
    pub(super) fn evaluate(&mut self, file: &Config) -> Layer {
        let is_same_file = self.file.as_deref() == Some(file);
        if !is_same_file {
            self.file = Some(Arc::new(file.clone()));
        }
        let around = Around { objects: &self.objects, own_namespace: &self.own_namespace, namespaces: &self.namespaces };
        let (mut good, mut verdicts, mut references) = (BTreeMap::new(), BTreeMap::new(), BTreeSet::new());
        for object in self.objects.values().map(Arc::as_ref) {
            let becomes = read(object, around);
            let named = becomes.iter().flat_map(|becomes| becomes.entries.references());
            references.extend(named.map(|Reference { store, name, .. }| (object.id.namespace.clone(), store, name)));
            let before = self.good.remove(&object.id).filter(|good| good.remembered.object.uid == object.uid);
            let (now, verdict) = self.judge(object, becomes, before, file, is_same_file);
            if let Some(now) = now {
                good.insert(object.id.clone(), now);
            }
            verdicts.insert(object.id.clone(), verdict);
        }
        (self.good, self.references) = (good, references);
        let parts: Vec<(&Id, &Part)> = self.good.iter().map(|(id, good)| (id, &good.part)).collect();
        let (_, left_out) = object::merge(file, parts.iter().map(|(_, part)| *part), &self.kinds);
        for (index, why) in &left_out {
            if let Some(verdict) = verdicts.get_mut(parts[*index].0) {
                *verdict = Verdict { is_ready: false, reason: "NameTaken", message: why.clone(), notes: Vec::new() };
            }
        }
        self.verdicts = verdicts;
        let is_in = |index: &usize| left_out.iter().all(|(out, _)| out != index);
        let parts = parts.into_iter().enumerate().filter(|(index, _)| is_in(index)).map(|(_, (id, part))| (id.clone(), part.clone()));
        Layer { parts: parts.collect() }
    }

    /// What an object is now, and what is said of it.
    fn judge(
        &self,
        object: &Object,
        becomes: Result<Becomes, Refusal>,
        before: Option<Good>,
        file: &Config,
        is_same_file: bool,
    ) -> (Option<Good>, Verdict) {
        let becomes = match becomes {
            Ok(becomes) => becomes,
            Err(Refusal { reason, message }) if WISHED.contains(&reason) => {
                return (None, Verdict { is_ready: false, reason, message, notes: Vec::new() });
            }
            Err(refusal) => return self.refused(before, refusal, file, is_same_file),
        };
        let Becomes { entries, mut notes } = becomes;
        let (mut contents, mut unread) = (BTreeMap::new(), None);
        for reference in entries.references() {
            match self.contents.get(&(object.id.namespace.clone(), reference.store, reference.name.clone())) {
                None => unread = Some(reference),
                Some(of) => {
                    if let Some(content) = of.as_ref().and_then(|of| of.get(&reference.key)) {
                        contents.insert(reference, content.clone());
                    }
                }
            }
        }
        if let Some(reference) = unread {
            let message = format!("{reference} was not read yet: Strata may need the right to list and watch it");
            return self.refused(before, Refusal { reason: "Waiting", message }, file, is_same_file);
        }
        let contents: Vec<(Reference, String)> = contents.into_iter().collect();
        let remembered =
            Remembered { object: Object { version: String::new(), status: serde_json::Value::Null, ..object.clone() }, entries, contents };
        let is_known =
            |good: &Good| is_same_file && good.remembered.entries == remembered.entries && good.remembered.contents == remembered.contents;
        let part = match before {
            Some(good) if is_known(&good) && good.part != Part::default() => good.part,
            before => match self.check(&object.id, &remembered.entries, &remembered.contents, file) {
                Ok(part) => part,
                Err(problems) => return self.refused(before, Refusal { reason: "Invalid", message: said(&problems) }, file, is_same_file),
            },
        };
        notes.extend(part.warnings.iter().map(|config::Warning(warning)| said(std::slice::from_ref(warning))));
        let message = match object.id.kind {
            Kind::Collector | Kind::Relay => format!("it is the relay '{}'", object.id.relay()),
            _ => format!("it is scraped as the job '{}'", object.id.job()),
        };
        (Some(Good { remembered, part }), Verdict { is_ready: true, reason: "Running", message, notes })
    }

    /// An object that cannot be used as it is now: what it was before goes on.
    fn refused(&self, before: Option<Good>, refusal: Refusal, file: &Config, is_same_file: bool) -> (Option<Good>, Verdict) {
        let Refusal { reason, message } = refusal;
        let kept = before.and_then(|good| {
            if is_same_file && good.part != Part::default() {
                return Some(good);
            }
            let Remembered { object, entries, contents } = &good.remembered;
            let part = self.check(&object.id, entries, contents, file).ok()?;
            Some(Good { part, ..good })
        });
        let message = if kept.is_some() { format!("{message}; what it said before goes on") } else { message };
        (kept, Verdict { is_ready: false, reason, message, notes: Vec::new() })
    }

    /// Checks what an object says, with these contents of Secrets, against a file. Outside of Strata's own namespace its targets are its namespace's.
    pub(super) fn check(&self, id: &Id, entries: &Entries, contents: &[(Reference, String)], file: &Config) -> Result<Part, Vec<Problem>> {
        let is_trusted = is_trusted(id, &self.own_namespace, self.allows_files);
        let nothing = BTreeMap::new();
        let ground = Ground {
            file,
            kinds: &self.kinds,
            variables: if is_trusted { &self.variables } else { &nothing },
            allows_files: is_trusted,
            folder: &self.folder,
        };
        let mut part = entries.check(&id.to_string(), &contents.iter().cloned().collect(), &ground)?;
        if id.namespace != self.own_namespace {
            part.jobs.iter_mut().for_each(|job| job.namespace = Some(id.namespace.clone()));
        }
        Ok(part)
    }
}

/// Whether an object may name files and variables of Strata's own.
fn is_trusted(id: &Id, own_namespace: &str, allows_files: bool) -> bool {
    id.namespace == own_namespace || allows_files
}

/// What an object becomes, by its kind.
pub(super) fn read(object: &Object, around: Around<'_>) -> Result<Becomes, Refusal> {
    match object.id.kind {
        Kind::Discovery => ours::discovery(object, around),
        Kind::Collector => ours::collector(object, around),
        Kind::Relay => ours::relay(object, around),
        Kind::ServiceMonitor | Kind::PodMonitor | Kind::Probe | Kind::ScrapeConfig => operator::read(object, around),
    }
}

/// The first problems, as a condition says them.
pub(super) fn said(problems: &[Problem]) -> String {
    let one = |problem: &Problem| match problem.field.is_empty() {
        true => problem.message.clone(),
        false => format!("{}: {}", problem.field, problem.message),
    };
    let mut text = problems.iter().take(PROBLEMS_SAID).map(one).collect::<Vec<_>>().join("; ");
    if problems.len() > PROBLEMS_SAID {
        text.push_str(&format!("; and {} more", problems.len() - PROBLEMS_SAID));
    }
    text
}

#[cfg(test)]
mod tests;
