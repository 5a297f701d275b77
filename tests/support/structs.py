"What is inside the structs of params and settings."
import msgspec


def structs(kind):
    "A struct and all that are in it."
    yield kind
    for f in msgspec.structs.fields(kind):
        if isinstance(f.type, type) and issubclass(f.type, msgspec.Struct): yield from structs(f.type)


def keys(kind, at=()):
    "The dotted path of every section and key below a struct, also of those in lists."
    for f in msgspec.structs.fields(kind):
        yield ".".join((*at, f.name))
        for t in (f.type, *getattr(f.type, "__args__", ())):
            t = getattr(t, "__origin__", t)
            for inner in (t, *getattr(t, "__args__", ())):
                if isinstance(inner, type) and issubclass(inner, msgspec.Struct): yield from keys(inner, (*at, f.name))
