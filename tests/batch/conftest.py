import pytest
from support.services import NatsService, RedisService
from support.stream_group import Group

SERVICES = {"redis": RedisService, "nats": NatsService}


@pytest.fixture(scope="module", params=list(SERVICES))
def service(request):
    with SERVICES[request.param]() as s: yield s


@pytest.fixture
def group(service):
    made = []
    def make(**settings):
        made.append(Group(service, **settings))
        return made[-1]
    yield make
    for g in made: g.end()
