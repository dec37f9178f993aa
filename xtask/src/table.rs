//! Plain text and Markdown tables.

/// A table: a heading and rows of the same width.
#[derive(Debug, Clone, Default)]
pub struct Table {
    heading: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// An empty table with these column names.
    #[must_use]
    pub fn new<S: Into<String>>(heading: impl IntoIterator<Item = S>) -> Self {
        Self { heading: heading.into_iter().map(Into::into).collect(), rows: Vec::new() }
    }

    /// Adds a row.
    pub fn row<S: Into<String>>(&mut self, cells: impl IntoIterator<Item = S>) {
        let mut cells: Vec<String> = cells.into_iter().map(Into::into).collect();
        cells.resize(self.heading.len(), String::new());
        self.rows.push(cells);
    }

    fn widths(&self) -> Vec<usize> {
        (0..self.heading.len())
            .map(|i| {
                let cells = self.rows.iter().map(|row| row[i].chars().count());
                cells.chain([self.heading[i].chars().count()]).max().unwrap_or(0)
            })
            .collect()
    }

    /// Numbers to the right, words to the left.
    fn line(&self, cells: &[String], widths: &[usize], between: &str) -> String {
        let parts: Vec<String> = cells
            .iter()
            .zip(widths)
            .enumerate()
            .map(|(i, (cell, width))| {
                if self.is_number(i) {
                    format!("{cell:>width$}")
                } else {
                    format!("{cell:<width$}")
                }
            })
            .collect();
        parts.join(between)
    }

    fn is_number(&self, column: usize) -> bool {
        let numeric = |cell: &String| {
            cell.is_empty() || cell.starts_with(|c: char| c.is_ascii_digit() || c == '-')
        };
        !self.rows.is_empty() && self.rows.iter().all(|row| numeric(&row[column]))
    }

    /// As psql would draw it, every line led by `indent`.
    #[must_use]
    pub fn text(&self, indent: &str) -> String {
        let widths = self.widths();
        let rule: Vec<String> = widths.iter().map(|width| "-".repeat(*width)).collect();
        let mut out = format!("{indent}{}\n", self.line(&self.heading, &widths, " | ").trim_end());
        out += &format!("{indent}{}\n", rule.join("-+-"));
        for row in &self.rows {
            out += &format!("{indent}{}\n", self.line(row, &widths, " | ").trim_end());
        }
        out
    }

    /// As a Markdown table.
    #[must_use]
    pub fn markdown(&self) -> String {
        let widths = self.widths();
        let rule: Vec<String> = (0..widths.len())
            .map(|i| {
                let dashes = "-".repeat(widths[i].max(2) - 1);
                if self.is_number(i) { format!("{dashes}:") } else { format!("{dashes}-") }
            })
            .collect();
        let mut out = format!("| {} |\n", self.line(&self.heading, &widths, " | "));
        out += &format!("| {} |\n", rule.join(" | "));
        for row in &self.rows {
            out += &format!("| {} |\n", self.line(row, &widths, " | "));
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::Table;

    #[test]
    fn numbers_go_right_and_words_left() {
        let mut table = Table::new(["name", "tps"]);
        table.row(["a", "1000"]);
        table.row(["bcdef", "7"]);
        assert_eq!(table.text(""), "name  |  tps\n------+-----\na     | 1000\nbcdef |    7\n");
        assert!(table.markdown().starts_with("| name  |  tps |\n| ----- | ---: |\n"));
    }
}
