-- The store as schema version 1 made it (postgresql). Frozen: never edit, it stands for databases in the field.

CREATE TABLE aliases (
    name TEXT NOT NULL,
    alias TEXT NOT NULL,
    version INTEGER NOT NULL,
    weight DOUBLE PRECISION DEFAULT '1' NOT NULL,
    changed_at DOUBLE PRECISION NOT NULL,
    PRIMARY KEY (name, alias)
);

CREATE TABLE checks (
    id SERIAL NOT NULL,
    at DOUBLE PRECISION NOT NULL,
    version INTEGER NOT NULL,
    drift TEXT,
    quality TEXT,
    decision TEXT NOT NULL,
    PRIMARY KEY (id)
);

CREATE INDEX ix_checks_at ON checks (at);

CREATE TABLE dead_letters (
    day INTEGER NOT NULL,
    segment BIGINT NOT NULL,
    position BIGINT NOT NULL,
    at DOUBLE PRECISION NOT NULL,
    kind INTEGER NOT NULL,
    reason TEXT NOT NULL,
    payload BYTEA NOT NULL,
    PRIMARY KEY (day, segment, position)
);

CREATE TABLE evergreen_meta (
    schema_version INTEGER NOT NULL
);

CREATE TABLE labels (
    day INTEGER NOT NULL,
    segment BIGINT NOT NULL,
    position BIGINT NOT NULL,
    id TEXT NOT NULL,
    label TEXT NOT NULL,
    observed_at DOUBLE PRECISION NOT NULL,
    received_at DOUBLE PRECISION NOT NULL,
    PRIMARY KEY (day, segment, position)
);

CREATE INDEX ix_labels_id ON labels (id);

CREATE TABLE leases (
    name TEXT NOT NULL,
    holder TEXT NOT NULL,
    token BIGINT NOT NULL,
    expires_at DOUBLE PRECISION NOT NULL,
    PRIMARY KEY (name)
);

CREATE TABLE predictions (
    day INTEGER NOT NULL,
    segment BIGINT NOT NULL,
    position BIGINT NOT NULL,
    id TEXT NOT NULL,
    at DOUBLE PRECISION NOT NULL,
    version INTEGER NOT NULL,
    features TEXT NOT NULL,
    prediction TEXT NOT NULL,
    probabilities TEXT,
    PRIMARY KEY (day, segment, position)
);

CREATE INDEX ix_predictions_at ON predictions (at);

CREATE INDEX ix_predictions_id ON predictions (id);

CREATE TABLE rejections (
    day INTEGER NOT NULL,
    segment BIGINT NOT NULL,
    position BIGINT NOT NULL,
    at DOUBLE PRECISION NOT NULL,
    route TEXT NOT NULL,
    status INTEGER NOT NULL,
    count INTEGER NOT NULL,
    reason TEXT NOT NULL,
    PRIMARY KEY (day, segment, position)
);

CREATE TABLE runs (
    id SERIAL NOT NULL,
    kind TEXT NOT NULL,
    state TEXT NOT NULL,
    outcome TEXT,
    trigger TEXT NOT NULL,
    who TEXT NOT NULL,
    why TEXT NOT NULL,
    created_at DOUBLE PRECISION NOT NULL,
    started_at DOUBLE PRECISION,
    finished_at DOUBLE PRECISION,
    version INTEGER,
    record TEXT DEFAULT '{}' NOT NULL,
    PRIMARY KEY (id)
);

CREATE INDEX ix_runs_state ON runs (state);

CREATE TABLE versions (
    name TEXT NOT NULL,
    version INTEGER NOT NULL,
    created_at DOUBLE PRECISION NOT NULL,
    origin TEXT NOT NULL,
    manifest TEXT NOT NULL,
    PRIMARY KEY (name, version)
);

CREATE TABLE workers (
    replica TEXT NOT NULL,
    slot TEXT NOT NULL,
    serving INTEGER,
    ready TEXT NOT NULL,
    failed TEXT NOT NULL,
    seen_at DOUBLE PRECISION NOT NULL,
    PRIMARY KEY (replica, slot)
);

INSERT INTO evergreen_meta (schema_version) VALUES (1);
