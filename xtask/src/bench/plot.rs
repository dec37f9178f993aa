//! The report as a picture: tps as bars, p50 and p99 as a second row of bars below.

use super::report::{Report, Row};

const BAR: f64 = 26.0;
const GAP: f64 = 4.0;
const BETWEEN: f64 = 34.0;
const LEFT: f64 = 70.0;
const HEIGHT: f64 = 200.0;
const COLOURS: [(&str, &str); 4] = [
    ("plain", "#9aa5b1"),
    ("remote_apply", "#4c78a8"),
    ("multimaster", "#e45756"),
    ("multimaster, 3 nodes", "#f2a541"),
];

/// One panel: a value per row, drawn as bars from `base` upwards.
struct Panel<'a> {
    title: &'a str,
    base: f64,
    value: fn(&Row) -> f64,
    digits: usize,
}

/// Draws the report.
#[must_use]
pub fn draw(report: &Report) -> String {
    let places = places(&report.rows);
    let width = places.last().map_or(LEFT, |last| last + BAR) + 30.0;
    let panels = [
        Panel {
            title: "transactions per second",
            base: 60.0 + HEIGHT,
            value: |row| row.tps,
            digits: 0,
        },
        Panel { title: "p50, ms", base: 360.0 + HEIGHT, value: |row| row.p50, digits: 2 },
        Panel { title: "p99, ms", base: 660.0 + HEIGHT, value: |row| row.p99, digits: 1 },
    ];
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width:.0}\" height=\"910\" \
         font-family=\"sans-serif\" font-size=\"11\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    for (i, (name, colour)) in COLOURS.iter().enumerate() {
        let x = LEFT + 170.0 * i as f64;
        out +=
            &format!("<rect x=\"{x}\" y=\"10\" width=\"12\" height=\"12\" fill=\"{colour}\"/>\n");
        out += &format!("<text x=\"{}\" y=\"20\">{name}</text>\n", x + 17.0);
    }
    for panel in &panels {
        out += &panel.draw(&report.rows, &places, width);
    }
    out + "</svg>\n"
}

fn places(rows: &[Row]) -> Vec<f64> {
    let mut x = LEFT;
    let mut places = Vec::new();
    for (i, row) in rows.iter().enumerate() {
        if i > 0 {
            let same = rows[i - 1].key.workload == row.key.workload;
            x += BAR + if same { GAP } else { BETWEEN };
        }
        places.push(x);
    }
    places
}

impl Panel<'_> {
    fn draw(&self, rows: &[Row], places: &[f64], width: f64) -> String {
        let top = rows.iter().map(self.value).fold(f64::MIN_POSITIVE, f64::max);
        let mut out = format!(
            "<text x=\"{LEFT}\" y=\"{}\" font-size=\"13\" font-weight=\"bold\">{}</text>\n\
             <line x1=\"{}\" y1=\"{base}\" x2=\"{}\" y2=\"{base}\" stroke=\"#333\"/>\n",
            self.base - HEIGHT - 14.0,
            self.title,
            LEFT - 6.0,
            width - 20.0,
            base = self.base
        );
        let mut last = "";
        for (row, x) in rows.iter().zip(places) {
            let value = (self.value)(row);
            let height = value / top * (HEIGHT - 20.0);
            let colour = COLOURS
                .iter()
                .find(|(name, _)| *name == row.key.system)
                .map_or("#000", |pair| pair.1);
            let y = self.base - height;
            out += &format!(
                "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{BAR}\" height=\"{height:.1}\" fill=\"{colour}\"/>\n\
                 <text x=\"{:.1}\" y=\"{:.1}\" font-size=\"8\" text-anchor=\"middle\">{value:.*}</text>\n",
                x + BAR / 2.0,
                y - 3.0,
                self.digits
            );
            if row.key.workload != last {
                last = &row.key.workload;
                out += &format!("<text x=\"{x:.1}\" y=\"{:.1}\">{last}</text>\n", self.base + 15.0);
            }
        }
        out
    }
}
