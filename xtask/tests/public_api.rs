//! The public surface of the libraries changes as their versions say.
//!
//! `specs/public-api/*.txt` has each library's surface as of the version in its first line. What
//! has changed since needs a higher version in Cargo.toml, how much higher says [`semver`].
//! `MTM_BLESS=1 cargo test -p xtask --test public_api` records the present surface under the present
//! version, and refuses if that is too low. Every `pub` item counts, whatever module it is in: the
//! lint `unreachable_pub` keeps others from being `pub`.

mod semver;

use quote::ToTokens;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use syn::{Attribute, Fields, ImplItem, Item, TraitItem, UseTree, Visibility};

const CRATES: [&str; 5] = ["mtm-core", "mtm-paxos", "mtm-dmq", "mtm-logrep", "mtm-generations"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Tokens with as few spaces as can be read.
fn text(tokens: impl ToTokens) -> String {
    let mut text = tokens.to_token_stream().to_string();
    for (from, to) in [
        (" ::", "::"),
        (":: ", "::"),
        (" <", "<"),
        ("< ", "<"),
        (" >", ">"),
        (" ,", ","),
        (" (", "("),
        ("( ", "("),
        (" )", ")"),
        (" :", ":"),
        ("& ", "&"),
        (" ;", ";"),
        ("[ ", "["),
        (" ]", "]"),
        (",)", ")"),
        (",>", ">"),
        ("->", " -> "),
        ("  ", " "),
        ("- >", "->"),
    ] {
        text = text.replace(from, to);
    }
    text.replace("  ", " ").trim().to_owned()
}

fn is_test(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|a| a.path().is_ident("cfg") && text(&a.meta).contains("test"))
}

const fn is_public(visibility: &Visibility) -> bool {
    matches!(visibility, Visibility::Public(_))
}

struct Surface {
    lines: BTreeSet<String>,
}

impl Surface {
    fn say(&mut self, module: &str, what: &str) {
        self.lines.insert(format!("{module}: {what}"));
    }

    /// Items of a file, and of the files of its modules.
    fn file(&mut self, file: &Path, directory: &Path, module: &str) {
        let source =
            std::fs::read_to_string(file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
        let parsed = syn::parse_file(&source).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
        self.items(&parsed.items, directory, module);
    }

    fn items(&mut self, items: &[Item], directory: &Path, module: &str) {
        for item in items {
            self.item(item, directory, module);
        }
    }

    fn item(&mut self, item: &Item, directory: &Path, module: &str) {
        match item {
            Item::Mod(m) if !is_test(&m.attrs) => {
                let inner = format!("{module}::{}", m.ident);
                let directory = directory.join(m.ident.to_string());
                if is_public(&m.vis) {
                    self.say(module, &format!("mod {}", m.ident));
                }
                match &m.content {
                    Some((_, items)) => self.items(items, &directory, &inner),
                    None => {
                        let (flat, nested) =
                            (directory.with_extension("rs"), directory.join("mod.rs"));
                        self.file(if flat.exists() { &flat } else { &nested }, &directory, &inner);
                    }
                }
            }
            Item::Fn(f) if is_public(&f.vis) => self.say(module, &text(&f.sig)),
            Item::Const(c) if is_public(&c.vis) => {
                self.say(module, &format!("const {}: {}", c.ident, text(&c.ty)));
            }
            Item::Type(t) if is_public(&t.vis) => {
                self.say(module, &format!("type {} = {}", t.ident, text(&t.ty)));
            }
            Item::Use(u) if is_public(&u.vis) => self.names(module, "", &u.tree),
            Item::Struct(s) if is_public(&s.vis) => {
                self.say(
                    module,
                    &format!(
                        "struct {}{}{}",
                        s.ident,
                        text(&s.generics),
                        text(&s.generics.where_clause)
                    ),
                );
                self.derives(module, &s.ident.to_string(), &s.attrs);
                self.fields(module, &s.ident.to_string(), &s.fields, false);
            }
            Item::Enum(e) if is_public(&e.vis) => {
                self.say(module, &format!("enum {}{}", e.ident, text(&e.generics)));
                self.derives(module, &e.ident.to_string(), &e.attrs);
                for variant in &e.variants {
                    let name = format!("{}::{}", e.ident, variant.ident);
                    self.say(module, &name);
                    self.fields(module, &name, &variant.fields, true);
                }
            }
            Item::Trait(t) if is_public(&t.vis) => {
                self.say(
                    module,
                    &format!("trait {}{}: {}", t.ident, text(&t.generics), text(&t.supertraits)),
                );
                for item in &t.items {
                    let what = match item {
                        TraitItem::Fn(f) => text(&f.sig),
                        TraitItem::Type(ty) => format!("type {}: {}", ty.ident, text(&ty.bounds)),
                        other => text(other),
                    };
                    self.say(module, &format!("{}: {what}", t.ident));
                }
            }
            Item::Impl(i) => self.implementation(module, i),
            _ => {}
        }
    }

    /// Each name of its own, so that one more is one more line.
    fn names(&mut self, module: &str, path: &str, tree: &UseTree) {
        match tree {
            UseTree::Path(inner) => {
                self.names(module, &format!("{path}{}::", inner.ident), &inner.tree);
            }
            UseTree::Group(group) => {
                group.items.iter().for_each(|tree| self.names(module, path, tree));
            }
            UseTree::Name(_) | UseTree::Rename(_) | UseTree::Glob(_) => {
                self.say(module, &format!("use {path}{}", text(tree)));
            }
        }
    }

    fn implementation(&mut self, module: &str, i: &syn::ItemImpl) {
        let (of, generics) = (text(&i.self_ty), text(&i.generics));
        if let Some((_, of_trait, _)) = &i.trait_ {
            self.say(module, &format!("impl{generics} {} for {of}", text(of_trait)));
            return;
        }
        for item in &i.items {
            match item {
                ImplItem::Fn(f) if is_public(&f.vis) => {
                    self.say(module, &format!("{of}: {}", text(&f.sig)))
                }
                ImplItem::Const(c) if is_public(&c.vis) => {
                    self.say(module, &format!("{of}: const {}: {}", c.ident, text(&c.ty)));
                }
                _ => {}
            }
        }
    }

    fn derives(&mut self, module: &str, name: &str, attributes: &[Attribute]) {
        for attribute in attributes {
            if attribute.path().is_ident("derive") || attribute.path().is_ident("non_exhaustive") {
                self.say(module, &format!("{name}: #[{}]", text(&attribute.meta)));
            }
        }
    }

    fn fields(&mut self, module: &str, name: &str, fields: &Fields, all: bool) {
        for (i, field) in fields.iter().enumerate().filter(|(_, f)| all || is_public(&f.vis)) {
            let field_name =
                field.ident.as_ref().map_or_else(|| i.to_string(), ToString::to_string);
            self.say(module, &format!("{name}.{field_name}: {}", text(&field.ty)));
        }
    }
}

fn surface_of(name: &str) -> String {
    let source = root().join(name).join("src");
    let mut surface = Surface { lines: BTreeSet::new() };
    surface.file(&source.join("lib.rs"), &source, &name.replace('-', "_"));
    surface.lines.iter().map(|line| format!("{line}\n")).collect()
}

/// The version in Cargo.toml: the library's own, or the workspace's.
fn version_of(name: &str) -> String {
    let read = |file: PathBuf| std::fs::read_to_string(file).expect("a manifest");
    let find = |manifest: String| {
        let value =
            |line: &str| Some(line.strip_prefix("version = \"")?.strip_suffix('"')?.to_owned());
        manifest.lines().find_map(value)
    };
    find(read(root().join(name).join("Cargo.toml")))
        .or_else(|| find(read(root().join("Cargo.toml"))))
        .expect("a version")
}

/// What is wrong with the change of a library since it was recorded.
fn judge(name: &str, recorded: &str, now: &str, version: &str) -> Result<(), String> {
    let (head, before) = recorded.split_once('\n').unwrap_or_default();
    let old = head.strip_prefix("version ").and_then(semver::version);
    let (Some(old), Some(new)) = (old, semver::version(version)) else {
        return Err(format!("{name}: the first line of its file, or its version, is malformed"));
    };
    let (change, lines) = semver::compare(before, now);
    let needed = semver::needed(old, change);
    if new >= needed {
        return Ok(());
    }
    let (major, minor, patch) = needed;
    Err(format!(
        "{name}: {change:?} since version {}.{}.{}, but its version is {version}. Take the change \
         back, or set version = \"{major}.{minor}.{patch}\" in Cargo.toml (also where the workspace \
         depends on it), and before a release record the surface: MTM_BLESS=1 cargo test -p xtask \
         --test public_api\n{}\n",
        old.0,
        old.1,
        old.2,
        lines.join("\n")
    ))
}

#[test]
fn the_public_surface_changes_as_the_version_says() {
    let bless = std::env::var_os("MTM_BLESS").is_some();
    let mut wrong = Vec::new();
    for name in CRATES {
        let file = root().join("specs/public-api").join(format!("{name}.txt"));
        let (now, version) = (surface_of(name), version_of(name));
        assert!(now.lines().count() > 40, "{name}: hardly anything was found");
        let recorded = std::fs::read_to_string(&file).unwrap_or_default();
        match judge(name, &recorded, &now, &version) {
            Err(why) => wrong.push(why),
            Ok(()) if bless => {
                std::fs::write(&file, format!("version {version}\n{now}")).expect("it is there");
            }
            Ok(()) => {}
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn a_change_without_its_version_is_refused() {
    let recorded = "version 0.1.0\nm: fn a()\n";
    let judged = |now, version| judge("it", recorded, now, version).is_ok();
    assert!(judged("m: fn a()\n", "0.1.0"));
    assert!(!judged("m: fn a()\nm: fn b()\n", "0.1.0"));
    assert!(judged("m: fn a()\nm: fn b()\n", "0.1.1"));
    assert!(!judged("m: fn b()\n", "0.1.1"));
    assert!(judged("m: fn b()\n", "0.2.0"));
    assert!(!judged("m: fn a()\n", "0.0.9"), "a version never goes back");
    let why = judge("it", recorded, "m: fn b()\n", "0.1.1").expect_err("it breaks");
    assert!(why.contains("Breaking since version 0.1.0") && why.contains("0.2.0"), "{why}");
}

/// "No PostgreSQL, async runtime or logger in a public API", nor anywhere else in these crates.
#[test]
fn the_libraries_need_next_to_nothing() {
    const ALLOWED: [&str; 7] =
        ["mtm-core", "bytes", "crc32fast", "smallvec", "thiserror", "loom", "proptest"];
    for name in CRATES {
        let manifest =
            std::fs::read_to_string(root().join(name).join("Cargo.toml")).expect("it is there");
        for line in manifest.lines().filter(|line| line.contains("workspace = true")) {
            let dependency = line.split(['.', ' ']).next().unwrap_or_default();
            let of_package = ["version", "edition", "rust-version", "license", "workspace"];
            let known = ALLOWED.contains(&dependency) || of_package.contains(&dependency);
            assert!(known, "{name} depends on {dependency}");
        }
        let surface = surface_of(name);
        for word in
            ["pgrx", "pg_sys", "tokio", "async ", "log::", "tracing", "std::time", "std::net"]
        {
            assert!(!surface.contains(word), "{word} is in the public surface of {name}");
        }
    }
}
