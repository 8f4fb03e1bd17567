"""One file a schema version, in Alembic's form. A released one is never edited: a change is a new file."""
