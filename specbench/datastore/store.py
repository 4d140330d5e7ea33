"""A store of texts, opened."""


class Datastore:
    pass
