//! The public surface of the libraries is what `specs/public-api/*.txt` says.
//!
//! A line that goes away or changes breaks embedders: then the version's first non-zero number
//! goes up. `MTM_BLESS=1 cargo test -p xtask --test public_api` writes the files anew. Every `pub`
//! item counts, whatever module it is in: the lint `unreachable_pub` keeps others from being `pub`.

use quote::ToTokens;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use syn::{Attribute, Fields, ImplItem, Item, TraitItem, Visibility};

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
            Item::Use(u) if is_public(&u.vis) => {
                self.say(module, &format!("use {}", text(&u.tree)))
            }
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

#[test]
fn the_public_surface_is_the_written_one() {
    let bless = std::env::var_os("MTM_BLESS").is_some();
    let mut wrong = Vec::new();
    for name in CRATES {
        let file = root().join("specs/public-api").join(format!("{name}.txt"));
        let now = surface_of(name);
        assert!(now.lines().count() > 40, "{name}: hardly anything was found");
        if bless {
            std::fs::write(&file, &now).expect("the directory is there");
        }
        let before = std::fs::read_to_string(&file).unwrap_or_default();
        let (old, new): (BTreeSet<_>, BTreeSet<_>) =
            (before.lines().collect(), now.lines().collect());
        wrong.extend(old.difference(&new).map(|line| format!("- {line}")));
        wrong.extend(new.difference(&old).map(|line| format!("+ {line}")));
    }
    assert!(
        wrong.is_empty(),
        "the public surface has changed (see the head of this file):\n{}",
        wrong.join("\n")
    );
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
