//! What is shown, and what keys do.

use std::collections::{HashSet, VecDeque};
use std::time::Instant;

use crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use crate::columns::{ALL, Column};
use crate::model::{Answer, Row, rows};

/// Answers whose usage the line of the last minute shows.
const HISTORY: usize = 60;

/// Which page of the help is on the screen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Help {
    Hidden,
    /// And what columns mean, where there is room for both.
    Keys {
        is_all: bool,
    },
    Columns,
}

pub struct App {
    pub source: String,
    pub answer: Option<Answer>,
    pub rows: Vec<Row>,
    /// Bytes in use at the last answers.
    pub used: VecDeque<u64>,
    pub error: Option<(String, Instant)>,
    pub sort: Column,
    pub reverse: bool,
    /// Levels below the first row that are shown.
    pub depth: Option<usize>,
    /// Only this cgroup and those below it.
    pub focus: Option<String>,
    pub hides_idle: bool,
    pub is_flat: bool,
    pub is_paused: bool,
    pub help: Help,
    pub filter: String,
    pub edits_filter: bool,
    pub is_over: bool,
    collapsed: HashSet<String>,
    selected: Option<String>,
    /// The first row on the screen.
    pub offset: usize,
    /// Rows on the screen, as of the last time it was drawn.
    pub page: usize,
}

impl App {
    pub fn new(source: String) -> Self {
        App {
            source,
            answer: None,
            rows: Vec::new(),
            used: VecDeque::new(),
            error: None,
            sort: Column::Used,
            reverse: false,
            depth: None,
            focus: None,
            hides_idle: false,
            is_flat: false,
            is_paused: false,
            help: Help::Hidden,
            filter: String::new(),
            edits_filter: false,
            is_over: false,
            collapsed: HashSet::new(),
            selected: None,
            offset: 0,
            page: 20,
        }
    }

    /// A new answer, or why there is none. What is on the screen stays until there is another.
    pub fn update(&mut self, answer: std::io::Result<Answer>) {
        if self.is_paused {
            return;
        }
        match answer {
            Ok(answer) => {
                self.error = None;
                // Another process behind the same socket has counts of its own.
                let before =
                    self.answer.take().filter(|before| before.about.pid == answer.about.pid);
                self.rows = rows(&answer, before.as_ref());
                self.used.push_back(self.rows.first().map_or(0, |first| first.current));
                if self.used.len() > HISTORY {
                    self.used.pop_front();
                }
                self.answer = Some(answer);
            }
            Err(error) => self.error = Some((error.to_string(), Instant::now())),
        }
    }

    /// The rows that are shown, in order: their indices.
    pub fn visible(&self) -> Vec<usize> {
        let focus = |path: &String| self.rows.iter().position(|row| row.path == *path);
        let Some(first) =
            self.focus.as_ref().and_then(focus).or((!self.rows.is_empty()).then_some(0))
        else {
            return Vec::new();
        };
        let base = self.rows[first].depth;
        let mut visible = Vec::new();
        let mut next = vec![first];
        while let Some(index) = next.pop() {
            let row = &self.rows[index];
            if index != first && self.hides_idle && row.is_idle() {
                continue;
            }
            visible.push(index);
            let is_deep = self.depth.is_some_and(|depth| row.depth - base >= depth);
            if is_deep || (self.collapsed.contains(&row.path) && !self.is_flat) {
                continue;
            }
            let mut children = row.children.clone();
            if !self.is_flat {
                self.sort(&mut children);
            }
            next.extend(children.into_iter().rev());
        }
        if self.is_flat {
            self.sort(&mut visible);
        }
        if !self.filter.is_empty() {
            let has = |index: usize| self.rows[index].path.contains(&self.filter);
            // In the tree, what is above stays, to tell where it is.
            let mut kept: HashSet<usize> = HashSet::new();
            for &index in visible.iter().filter(|index| has(**index)) {
                let mut above = Some(index);
                while let Some(index) = above.filter(|index| kept.insert(*index) && !self.is_flat) {
                    above = self.rows[index].parent;
                }
            }
            visible.retain(|index| kept.contains(index));
        }
        visible
    }

    fn sort(&self, rows: &mut [usize]) {
        rows.sort_by(|&a, &b| {
            let ordering = self.sort.compare(&self.rows[a], &self.rows[b]);
            if self.reverse { ordering.reverse() } else { ordering }
        });
    }

    /// Descendants of a row that the present choices hide.
    pub fn hidden_below(&self, index: usize, visible: &HashSet<usize>) -> usize {
        let row = &self.rows[index];
        // Pre-order: descendants follow.
        let below =
            (index + 1..self.rows.len()).take_while(|below| self.rows[*below].depth > row.depth);
        match row.children.iter().any(|child| visible.contains(child)) {
            true => 0,
            false => below.count(),
        }
    }

    /// The place of the selected row among the visible ones.
    pub fn selected(&self, visible: &[usize]) -> usize {
        let is_selected = |index: &usize| self.selected.as_ref() == Some(&self.rows[*index].path);
        visible.iter().position(is_selected).unwrap_or(0)
    }

    fn select(&mut self, visible: &[usize], place: usize) {
        let place = place.min(visible.len().saturating_sub(1));
        self.selected = visible.get(place).map(|index| self.rows[*index].path.clone());
    }

    pub fn key(&mut self, key: KeyEvent) {
        let is_control = key.modifiers.contains(KeyModifiers::CONTROL);
        if is_control && key.code == KeyCode::Char('c') {
            self.is_over = true;
            return;
        }
        if self.edits_filter {
            match key.code {
                KeyCode::Enter => self.edits_filter = false,
                KeyCode::Esc => {
                    self.edits_filter = false;
                    self.filter.clear();
                }
                KeyCode::Backspace => drop(self.filter.pop()),
                KeyCode::Char(c) if !is_control => self.filter.push(c),
                _ => {}
            }
            return;
        }
        if let Help::Keys { is_all } = self.help {
            self.help = if is_all { Help::Hidden } else { Help::Columns };
            return;
        }
        if self.help == Help::Columns {
            self.help = Help::Hidden;
            return;
        }
        let visible = self.visible();
        let place = self.selected(&visible);
        let at = visible.get(place).copied();
        match key.code {
            KeyCode::Char('q') => self.is_over = true,
            KeyCode::Char('?' | 'h') | KeyCode::F(1) => self.help = Help::Keys { is_all: false },
            KeyCode::Up | KeyCode::Char('k') => self.select(&visible, place.saturating_sub(1)),
            KeyCode::Down | KeyCode::Char('j') => self.select(&visible, place + 1),
            KeyCode::PageUp => self.select(&visible, place.saturating_sub(self.page)),
            KeyCode::PageDown => self.select(&visible, place + self.page),
            KeyCode::Home | KeyCode::Char('g') => self.select(&visible, 0),
            KeyCode::End | KeyCode::Char('G') => self.select(&visible, usize::MAX),
            KeyCode::Left => self.collapse(&visible, at),
            KeyCode::Right => {
                if let Some(at) = at {
                    self.collapsed.remove(&self.rows[at].path);
                }
            }
            KeyCode::Enter => self.focus = at.map(|at| self.rows[at].path.clone()),
            KeyCode::Backspace | KeyCode::Esc => self.leave_focus(),
            KeyCode::Char('>' | '.') => self.sort_by_next(1),
            KeyCode::Char('<' | ',') => self.sort_by_next(ALL.len() - 1),
            KeyCode::Char('r') => self.reverse = !self.reverse,
            KeyCode::Char('+') => {
                self.depth = self.depth.map(|depth| depth + 1).filter(|depth| *depth < 10)
            }
            KeyCode::Char('-') => {
                self.depth = Some(self.depth.map_or(3, |depth| depth.saturating_sub(1)))
            }
            KeyCode::Char('i') => self.hides_idle = !self.hides_idle,
            KeyCode::Char('t') => self.is_flat = !self.is_flat,
            KeyCode::Char('p' | ' ') => self.is_paused = !self.is_paused,
            KeyCode::Char('/') => self.edits_filter = true,
            _ => {}
        }
    }

    /// Hides what is below the row, or selects its parent where there is nothing to hide.
    fn collapse(&mut self, visible: &[usize], at: Option<usize>) {
        let Some(row) = at.map(|at| &self.rows[at]) else { return };
        if !row.children.is_empty() && !self.collapsed.contains(&row.path) {
            self.collapsed.insert(row.path.clone());
        } else if let Some(place) = visible.iter().position(|index| Some(*index) == row.parent) {
            self.select(visible, place);
        }
    }

    /// One level up.
    fn leave_focus(&mut self) {
        if !self.filter.is_empty() {
            self.filter.clear();
            return;
        }
        let Some(path) = self.focus.take() else { return };
        let parent = self.rows.iter().find(|row| row.path == path).and_then(|row| row.parent);
        self.focus =
            parent.filter(|parent| *parent > 0).map(|parent| self.rows[parent].path.clone());
    }

    fn sort_by_next(&mut self, steps: usize) {
        let at = ALL.iter().position(|column| *column == self.sort).unwrap_or(0);
        self.sort = ALL[(at + steps) % ALL.len()];
    }
}
