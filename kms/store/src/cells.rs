//! The cells of a row, by the names of their columns: a fault says which one made no sense.

use std::fmt::Display;

use kms_core::{store::Fault, time::SignedDuration};

use crate::session::Row;

/// A row, with the name by which a fault calls it.
pub(crate) struct Cells<'a> {
    row: &'a dyn Row,
    place: String,
}

impl<'a> Cells<'a> {
    pub(crate) fn named(row: &'a dyn Row, place: &str) -> Self {
        Self { row, place: place.to_owned() }
    }

    pub(crate) fn of(row: &'a dyn Row, table: &str, name: &'static str) -> Result<Self, Fault> {
        let name = String::read(row, name).map_err(|error| corrupt(table, name, error))?;
        Ok(Self { row, place: format!("{table} {name}") })
    }

    pub(crate) fn get<T: Cell>(&self, column: &str) -> Result<T, Fault> {
        T::read(self.row, column).map_err(|error| self.corrupt(column, error))
    }

    pub(crate) fn parse<T: Cell, U>(
        &self,
        column: &str,
        parse: impl FnOnce(T) -> Option<U>,
    ) -> Result<U, Fault> {
        parse(self.get(column)?).ok_or_else(|| self.corrupt(column, "it has no meaning"))
    }

    pub(crate) fn some_span(&self, column: &str) -> Result<Option<SignedDuration>, Fault> {
        Ok(self.get::<Option<i64>>(column)?.map(SignedDuration::from_micros))
    }

    pub(crate) fn parse_some<T, U>(
        &self,
        column: &str,
        parse: impl FnOnce(T) -> Option<U>,
    ) -> Result<Option<U>, Fault>
    where
        Option<T>: Cell,
    {
        self.parse(column, |cell: Option<T>| cell.map_or(Some(None), |value| parse(value).map(Some)))
    }

    /// That a cell makes no sense.
    pub(crate) fn corrupt(&self, column: &str, why: impl Display) -> Fault {
        corrupt(&self.place, column, why)
    }
}

/// What a cell may hold.
pub(crate) trait Cell: Sized {
    fn read(row: &dyn Row, column: &str) -> Result<Self, sqlx::Error>;
}

/// A type's cells, with NULL and without.
macro_rules! cell {
    ($type:ty, $read:ident) => {
        impl Cell for Option<$type> {
            fn read(row: &dyn Row, column: &str) -> Result<Self, sqlx::Error> {
                row.$read(column)
            }
        }

        impl Cell for $type {
            fn read(row: &dyn Row, column: &str) -> Result<Self, sqlx::Error> {
                row.$read(column)?.ok_or_else(|| sqlx::Error::Decode("it is null".into()))
            }
        }
    };
}

cell!(i64, int);
cell!(String, text);
cell!(Vec<u8>, bytes);
cell!(bool, bool);

fn corrupt(place: &str, column: &str, why: impl Display) -> Fault {
    Fault::Corrupt(format!("{place}, column {column}: {why}"))
}
