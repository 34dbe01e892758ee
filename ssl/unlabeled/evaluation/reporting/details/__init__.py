"""Sections of the report that go into detail: pretraining, classes, the geometry of the features, the map."""
