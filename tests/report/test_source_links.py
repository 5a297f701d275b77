"Links to the commit and the CI run: addresses of the web and nothing else, and no secret of an address on a page."
import subprocess

import pytest
from support.html_pages import self_contained

from mlops_nb.report.html import PageHeader, render_page
from mlops_nb.report.source_links import SourceLinks, commit_url, describe_ci, read_source_links, repository_url


@pytest.mark.parametrize("remote, url", [
    ("git@git.example.org:a/b.git", "https://git.example.org/a/b"),
    ("ssh://git@git.example.org:22/a/b.git", "https://git.example.org/a/b"),
    ("https://ana:t0ken@git.example.org/a/b.git", "https://git.example.org/a/b"),
    ("http://ana@git.example.org:3000/a/b", "http://git.example.org:3000/a/b"),
    ("https://git.example.org:8443/a/b", "https://git.example.org:8443/a/b"), ("/srv/a.git", ""), ("file:///srv/a", ""),
    ("javascript:alert(1)", ""), ("https://git.example.org/", ""), ("https://git.example.org/<b>", ""), ("", ""),
    ("https://git.example.org:port/a", ""), ("C:\\repos\\a", ""), ("https://[::1", "")])
def test_an_address_of_a_repository(remote, url):
    assert repository_url(remote) == url


def test_each_host_has_its_own_page_of_a_commit():
    assert [commit_url(f"https://{host}/a/b", "c1") for host in ("github.com", "gitlab.com", "bitbucket.org")] == [
        "https://github.com/a/b/commit/c1", "https://gitlab.com/a/b/-/commit/c1", "https://bitbucket.org/a/b/commits/c1"]
    assert commit_url("", "c1") == ""


GITHUB = dict(GITHUB_RUN_ID="7", GITHUB_REPOSITORY="a/b", GITHUB_SERVER_URL="https://github.com",
              GITHUB_REF_NAME="main")
GITLAB = dict(GITLAB_CI="true", CI_PIPELINE_ID="8", CI_PROJECT_URL="https://gitlab.com/a/b", CI_COMMIT_REF_NAME="fix")


def test_ci_services_describe_their_run():
    assert describe_ci(GITHUB) == ("GitHub Actions 7", "https://github.com/a/b/actions/runs/7", "https://github.com/a/b",
                                   "main")
    assert describe_ci(GITHUB | dict(GITHUB_HEAD_REF="change"))[3] == "change"
    assert describe_ci(GITLAB) == ("GitLab pipeline 8", "https://gitlab.com/a/b/-/pipelines/8", "https://gitlab.com/a/b",
                                   "fix")
    assert describe_ci(GITHUB | dict(GITHUB_SERVER_URL="javascript:"))[:2] == ("GitHub Actions 7", "")
    assert describe_ci(dict(CI="true")) == ("", "", "", "")


def test_a_commit_its_branch_and_what_was_not_committed(tmp_path):
    assert read_source_links(tmp_path, {}) == SourceLinks()
    assert read_source_links(tmp_path, GITLAB).ci_href == "https://gitlab.com/a/b/-/pipelines/8"

    def git(*words):
        settings = ("user.name=Ana", "user.email=ana@example.org", "commit.gpgsign=false", "core.hooksPath=/dev/null")
        subprocess.run(["git", *(x for s in settings for x in ("-c", s)), *words], cwd=tmp_path, check=True)
    git("init", "-q", "-b", "trunk")
    (tmp_path / "params.yaml").write_text("a: 1\n")
    git("add", "-A")
    git("commit", "-q", "-m", "one")
    assert read_source_links(tmp_path, {}).code_href == "" and " on trunk" in read_source_links(tmp_path, {}).code
    git("remote", "add", "origin", "https://ana:s3cret@git.example.org/a/b.git")
    (tmp_path / "params.yaml").write_text("a: 2\n")
    found = read_source_links(tmp_path, {})
    assert found.code.endswith(" on trunk, with changes not committed") and "s3cret" not in str(found)
    assert found.code_href.startswith("https://git.example.org/a/b/commit/")
    assert " on main" in (ci := read_source_links(tmp_path, GITHUB)).code and "github.com/a/b/commit" in ci.code_href


@pytest.mark.parametrize("href", ["javascript:alert(1)", " https://x", "//x/y", "data:text/html,x"])
def test_only_addresses_of_the_web_become_links(href):
    text = render_page("t", "", PageHeader(source=SourceLinks("<b>c1", href, "run \"7\"", "https://ci.example.org/7")))
    assert self_contained(text).links == ["#main", "https://ci.example.org/7"]
    assert "&lt;b&gt;c1" in text and "<b>c1" not in text
