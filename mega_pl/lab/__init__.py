"""The embedded default: a world of true facts and two small models that know it."""
