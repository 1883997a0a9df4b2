//! Texts from the command line that clap leaves as they are: ids, vectors, relations.

use super::Failure;
use gristmill_rpc::ids::GrainId;
use gristmill_rpc::schema::{Relation, RelationPattern};

/// 32 hex digits as a grain's id.
pub(super) fn grain_id(text: &str) -> Result<GrainId, Failure> {
    let wrong = || Failure::usage(format!("--id {text:?} is not 32 hex digits"));
    if text.len() != 32 || !text.is_ascii() {
        return Err(wrong());
    }
    let mut id = [0; 16];
    for (at, byte) in id.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * at..2 * at + 2], 16).map_err(|_| wrong())?;
    }
    Ok(GrainId(id))
}

/// Numbers with commas as a vector.
pub(super) fn vector(text: &str) -> Result<Vec<f32>, Failure> {
    text.split(',')
        .map(|number| {
            let parsed = number.trim().parse::<f32>();
            parsed.map_err(|_| Failure::usage(format!("--vector: {number:?} is not a number")))
        })
        .collect()
}

/// `PREDICATE=OBJECT`, or `PREDICATE` where the object stands apart.
pub(super) fn relations(texts: &[String], object: Option<&String>) -> Result<Vec<Relation>, Failure> {
    if object.is_some() && texts.len() != 1 {
        return Err(Failure::usage("--object goes with exactly one --relation; give PREDICATE=OBJECT for several"));
    }
    texts
        .iter()
        .map(|text| match (text.split_once('='), object) {
            (Some((predicate, object)), None) => {
                Ok(Relation { predicate: predicate.to_owned(), object: object.to_owned() })
            }
            (None, Some(object)) => Ok(Relation { predicate: text.clone(), object: object.clone() }),
            (None, None) => Err(Failure::usage(format!("--relation {text:?} has no object; give PREDICATE=OBJECT"))),
            (Some(_), Some(_)) => Err(Failure::usage(format!("--relation {text:?} and --object both name an object"))),
        })
        .collect()
}

/// A pattern with at least one part.
pub(super) fn pattern(relation: Option<&String>, subject: Option<String>) -> Result<Option<RelationPattern>, Failure> {
    let (predicate, object) = match relation {
        None => ("", ""),
        Some(text) => text.split_once('=').ok_or_else(|| {
            Failure::usage(format!("--relation {text:?} has no =; give PREDICATE=OBJECT, PREDICATE= or =OBJECT"))
        })?,
    };
    let pattern = RelationPattern {
        subject: subject.unwrap_or_default(),
        predicate: predicate.to_owned(),
        object: object.to_owned(),
    };
    let empty = pattern.subject.is_empty() && pattern.predicate.is_empty() && pattern.object.is_empty();
    if empty && relation.is_some() {
        return Err(Failure::usage("--relation = matches anything; name a predicate or an object"));
    }
    Ok((!empty).then_some(pattern))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_read_or_refused() {
        assert_eq!(grain_id("000102030405060708090a0b0c0d0e0F").ok().map(|id| id.0[15]), Some(15));
        for wrong in ["", "00", "+00102030405060708090a0b0c0d0e0f0", "zz0102030405060708090a0b0c0d0e0f"] {
            assert!(grain_id(wrong).is_err(), "{wrong:?}");
        }
        assert_eq!(vector("1, -2.5,3e2").ok(), Some(vec![1.0, -2.5, 300.0]));
        assert!(vector("1,,2").is_err());
        let relation = |predicate: &str, object: &str| Relation { predicate: predicate.into(), object: object.into() };
        assert_eq!(
            relations(&["a=b".into(), "c=d=e".into()], None).ok(),
            Some(vec![relation("a", "b"), relation("c", "d=e")])
        );
        assert_eq!(relations(&["is_a".into()], Some(&"x".into())).ok(), Some(vec![relation("is_a", "x")]));
        assert!(relations(&["is_a".into()], None).is_err());
        assert!(relations(&["a=b".into(), "c".into()], Some(&"x".into())).is_err());
        assert!(pattern(Some(&"=".into()), None).is_err());
        assert!(pattern(None, None).is_ok_and(|pattern| pattern.is_none()));
        assert!(pattern(Some(&"is_a=".into()), None).is_ok_and(|pattern| pattern.is_some()));
    }
}
