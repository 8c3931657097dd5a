//! Routes: a path, a method, and the call of the node that answers it.
//!
//! A test compares the table of routes with the operations that `archipelago_api::openapi` describes.

use std::sync::Arc;

use archipelago_api::openapi::document;
use archipelago_api::pools::PoolList;
use archipelago_api::types::{Done, Failure, Stopped};
use archipelago_protocol::catalogue::PAGE_MAX;
use archipelago_protocol::diff::RANGES_MAX;
use archipelago_protocol::{Error, ErrorCode, LabelFilter, Lineage, Name};
use axum::Router;
use axum::body::Bytes;
use axum::extract::rejection::QueryRejection;
use axum::extract::{DefaultBodyLimit, FromRequest, FromRequestParts, Path, Query, Request, State};
use axum::http::StatusCode;
use axum::http::request::Parts;
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, delete, get, post};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::daemon::{Node, RemovablePool};

/// Longest body of a request: names and numbers.
const BODY_LEN_MAX: usize = 64 << 10;

type Shared = State<Arc<Node>>;
type Answer = Result<Response, Refusal>;
type Routes = Vec<(&'static str, &'static str, MethodRouter<Arc<Node>>)>;

/// Path, method and handler of every call of the API.
fn routes() -> Routes {
    vec![
        ("/v1/openapi.json", "get", get(openapi)),
        ("/v1/node/status", "get", get(status)),
        ("/v1/node/stop", "post", post(stop)),
        ("/v1/pools", "get", get(pools)),
        ("/v1/pools", "post", post(add_pool)),
        ("/v1/pools/{name}", "get", get(pool)),
        ("/v1/pools/{name}", "delete", delete(remove_pool)),
        ("/v1/pools/{name}/take-over", "post", post(take_over_pool)),
        ("/v1/pools/{name}/check", "get", get(check)),
        ("/v1/volumes", "get", get(list)),
        ("/v1/volumes", "post", post(create)),
        ("/v1/volumes/{name}", "get", get(info)),
        ("/v1/volumes/{name}/usage", "get", get(usage)),
        ("/v1/volumes/{name}/diff", "get", get(diff)),
        ("/v1/volumes/{name}", "delete", delete(remove)),
        ("/v1/volumes/{name}/snapshot", "post", post(snapshot)),
        ("/v1/volumes/{name}/clone", "post", post(clone)),
        ("/v1/volumes/{name}/resize", "post", post(resize)),
        ("/v1/volumes/{name}/set", "post", post(set)),
        ("/v1/volumes/{name}/rename", "post", post(rename)),
        ("/v1/volumes/{name}/rollback", "post", post(rollback)),
        ("/v1/volumes/{name}/attach", "post", post(attach)),
        ("/v1/volumes/{name}/detach", "post", post(detach)),
        ("/v1/volumes/{name}/export", "post", post(export)),
        ("/v1/volumes/{name}/open", "post", post(open)),
        ("/v1/images", "post", post(import)),
        ("/v1/images/{name}", "delete", delete(abort_import)),
        ("/v1/images/{name}/publish", "post", post(publish)),
    ]
}

/// The API of `node`.
pub(crate) fn router(node: Arc<Node>) -> Router {
    let mut router = Router::new();
    for (path, _, handler) in routes() {
        router = router.route(path, handler);
    }
    router
        .fallback(nowhere)
        .method_not_allowed_fallback(nowhere)
        .layer(DefaultBodyLimit::max(BODY_LEN_MAX))
        .with_state(node)
}

/// An error that is returned to the client.
struct Refusal(Error);

impl From<Error> for Refusal {
    fn from(error: Error) -> Refusal {
        Refusal(error)
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let status = match self.0.code {
            ErrorCode::Invalid => StatusCode::BAD_REQUEST,
            ErrorCode::NotFound => StatusCode::NOT_FOUND,
            ErrorCode::Exists | ErrorCode::InUse | ErrorCode::Stale => StatusCode::CONFLICT,
            ErrorCode::NoSpace
            | ErrorCode::NoDescriptors
            | ErrorCode::NoMemory
            | ErrorCode::NoRunSpace
            | ErrorCode::TooLarge => StatusCode::INSUFFICIENT_STORAGE,
            ErrorCode::ReadOnly | ErrorCode::Denied => StatusCode::FORBIDDEN,
            ErrorCode::Unsupported | ErrorCode::UnsupportedFormat => StatusCode::NOT_IMPLEMENTED,
            ErrorCode::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            ErrorCode::Damaged
            | ErrorCode::Io
            | ErrorCode::SyncFailed
            | ErrorCode::Internal
            | ErrorCode::NotOpen => StatusCode::INTERNAL_SERVER_ERROR,
        };
        (status, axum::Json(Failure { error: self.0 })).into_response()
    }
}

fn ok(body: impl Serialize) -> Answer {
    Ok(axum::Json(body).into_response())
}

fn made(body: impl Serialize) -> Answer {
    Ok((StatusCode::CREATED, axum::Json(body)).into_response())
}

/// A name in a path. An invalid name is refused in JSON, as every other error is.
struct Segment(String);

impl<S: Send + Sync> FromRequestParts<S> for Segment {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Segment, Refusal> {
        match Path::from_request_parts(parts, state).await {
            Ok(Path(text)) => Ok(Segment(text)),
            Err(error) => Err(Refusal(Error::new(ErrorCode::Invalid, error.body_text()))),
        }
    }
}

/// The bytes of a body, with a limited length.
struct Body(Bytes);

impl<S: Send + Sync> FromRequest<S> for Body {
    type Rejection = Refusal;

    async fn from_request(request: Request, state: &S) -> Result<Body, Refusal> {
        match Bytes::from_request(request, state).await {
            Ok(bytes) => Ok(Body(bytes)),
            Err(error) => Err(Refusal(Error::new(
                ErrorCode::Invalid,
                format!(
                    "body of the request: {}; at most {BODY_LEN_MAX} bytes are read",
                    error.body_text()
                ),
            ))),
        }
    }
}

/// The body of a request; an empty one counts as `{}`.
fn parse<T: DeserializeOwned>(body: &Bytes) -> Result<T, Refusal> {
    let bytes: &[u8] = if body.is_empty() { b"{}" } else { body };
    serde_json::from_slice(bytes).map_err(|error| {
        Refusal(Error::new(
            ErrorCode::Invalid,
            format!("body of the request: {error}"),
        ))
    })
}

fn name(text: &str) -> Result<Name, Refusal> {
    Ok(text.parse::<Name>()?)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ListQuery {
    #[serde(default)]
    prefix: String,
    after: Option<Name>,
    limit: Option<usize>,
    label: Option<LabelFilter>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RemovePoolQuery {
    #[serde(default)]
    unserved: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DiffQuery {
    from: Option<Name>,
    #[serde(default)]
    start: u64,
    limit: Option<usize>,
}

/// Which import of a name is meant: another import may have the name by now.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ImportQuery {
    lineage: Lineage,
}

/// The parameters of a request, if they are valid.
fn valid<T>(query: Result<Query<T>, QueryRejection>) -> Result<T, Refusal> {
    match query {
        Ok(Query(query)) => Ok(query),
        Err(error) => Err(Refusal(Error::new(ErrorCode::Invalid, error.body_text()))),
    }
}

async fn nowhere(method: axum::http::Method, uri: axum::http::Uri) -> Refusal {
    let what = format!("the API has no {method} {}", uri.path());
    Refusal(Error::new(ErrorCode::Unsupported, what).with_hint("GET /v1/openapi.json describes it"))
}

async fn openapi() -> Response {
    axum::Json(document()).into_response()
}

async fn status(State(node): Shared) -> Answer {
    ok(node.status().await)
}

async fn stop(State(node): Shared) -> Answer {
    let mut stopped = node.stopped.subscribe();
    node.stop.notify_one();
    let stopped = stopped.wait_for(Option::is_some).await;
    let unfinished = stopped.ok().and_then(|unfinished| unfinished.clone());
    ok(Stopped {
        unfinished: unfinished.unwrap_or_default(),
    })
}

async fn pools(State(node): Shared) -> Answer {
    ok(PoolList {
        pools: node.pool_list().await?,
    })
}

async fn add_pool(State(node): Shared, Body(body): Body) -> Answer {
    let request = parse(&body)?;
    made(kept(async move { node.add_pool(request).await }).await?)
}

/// Carries out all of `change`. A request ends when its client disconnects; that must not leave processes, mounts or devices that the node
/// does not know.
async fn kept<T: Send + 'static>(
    change: impl Future<Output = Result<T, Error>> + Send + 'static,
) -> Result<T, Error> {
    let done = tokio::spawn(change).await;
    done.map_err(|error| Error::new(ErrorCode::Internal, error.to_string()))?
}

async fn pool(State(node): Shared, Segment(text): Segment) -> Answer {
    ok(node.pool(&name(&text)?)?.info_of_pool().await?)
}

async fn remove_pool(
    State(node): Shared,
    Segment(text): Segment,
    query: Result<Query<RemovePoolQuery>, QueryRejection>,
) -> Answer {
    let name = name(&text)?;
    let RemovePoolQuery { unserved } = valid(query)?;
    let which = if unserved {
        RemovablePool::Unserved
    } else {
        RemovablePool::Empty
    };
    kept(async move { node.remove_pool(&name, which).await }).await?;
    ok(Done {})
}

async fn take_over_pool(State(node): Shared, Segment(text): Segment) -> Answer {
    let name = name(&text)?;
    ok(kept(async move { node.take_over_pool(&name).await }).await?)
}

async fn check(State(node): Shared, Path(text): Path<String>) -> Answer {
    let pool = node.pool(&name(&text)?)?;
    pool.check_served()?;
    ok(pool.check_pool().await?)
}

async fn list(State(node): Shared, query: Result<Query<ListQuery>, QueryRejection>) -> Answer {
    let query = valid(query)?;
    let limit = query.limit.unwrap_or(PAGE_MAX);
    if !(1..=PAGE_MAX).contains(&limit) {
        return Err(Refusal(Error::new(
            ErrorCode::Invalid,
            format!("limit {limit} is not in 1..={PAGE_MAX}"),
        )));
    }
    let page = node.list(query.prefix, query.after, limit, query.label);
    ok(page.await?)
}

async fn create(State(node): Shared, Body(body): Body) -> Answer {
    made(node.create(parse(&body)?).await?)
}

async fn info(State(node): Shared, Segment(text): Segment) -> Answer {
    let name = name(&text)?;
    ok(node.pool_of(&name).await?.info(&name).await?)
}

async fn usage(State(node): Shared, Segment(text): Segment) -> Answer {
    let name = name(&text)?;
    ok(node.pool_of(&name).await?.usage(&name).await?)
}

async fn diff(
    State(node): Shared,
    Segment(text): Segment,
    query: Result<Query<DiffQuery>, QueryRejection>,
) -> Answer {
    let name = name(&text)?;
    let DiffQuery { from, start, limit } = valid(query)?;
    let limit = limit.unwrap_or(RANGES_MAX);
    ok(node
        .pool_of(&name)
        .await?
        .diff(&name, from, start, limit)
        .await?)
}

async fn remove(State(node): Shared, Segment(text): Segment) -> Answer {
    let name = name(&text)?;
    node.pool_of(&name).await?.remove(&name).await?;
    ok(Done {})
}

async fn snapshot(State(node): Shared, Segment(text): Segment, Body(body): Body) -> Answer {
    made(node.snapshot(&name(&text)?, parse(&body)?).await?)
}

async fn clone(State(node): Shared, Segment(text): Segment, Body(body): Body) -> Answer {
    made(node.clone_volume(&name(&text)?, parse(&body)?).await?)
}

async fn resize(State(node): Shared, Segment(text): Segment, Body(body): Body) -> Answer {
    let name = name(&text)?;
    let request = parse(&body)?;
    ok(kept(async move { node.pool_of(&name).await?.resize(&name, request).await }).await?)
}

async fn set(State(node): Shared, Segment(text): Segment, Body(body): Body) -> Answer {
    let name = name(&text)?;
    ok(node.pool_of(&name).await?.set(&name, parse(&body)?).await?)
}

async fn rename(State(node): Shared, Segment(text): Segment, Body(body): Body) -> Answer {
    ok(node.rename(&name(&text)?, parse(&body)?).await?)
}

async fn rollback(State(node): Shared, Segment(text): Segment, Body(body): Body) -> Answer {
    let name = name(&text)?;
    ok(node
        .pool_of(&name)
        .await?
        .rollback(&name, parse(&body)?)
        .await?)
}

async fn attach(State(node): Shared, Segment(text): Segment, Body(body): Body) -> Answer {
    let name = name(&text)?;
    let request = parse(&body)?;
    ok(kept(async move { node.pool_of(&name).await?.attach(&name, request).await }).await?)
}

async fn detach(State(node): Shared, Segment(text): Segment, Body(body): Body) -> Answer {
    let name = name(&text)?;
    let request = parse(&body)?;
    kept(async move { node.pool_of(&name).await?.detach(&name, request).await }).await?;
    ok(Done {})
}

async fn export(State(node): Shared, Segment(text): Segment) -> Answer {
    let name = name(&text)?;
    ok(node.pool_of(&name).await?.begin_export(&name).await?)
}

async fn open(State(node): Shared, Segment(text): Segment, Body(body): Body) -> Answer {
    let name = name(&text)?;
    ok(node
        .pool_of(&name)
        .await?
        .open(&name, parse(&body)?)
        .await?)
}

async fn import(State(node): Shared, Body(body): Body) -> Answer {
    let request = parse(&body)?;
    // In its own task: if the client ends meanwhile, this task is dropped, and nobody would follow the import.
    let begun = tokio::spawn(async move { node.begin_import(request).await });
    let lost = |error| Error::new(ErrorCode::Internal, format!("beginning an import: {error}"));
    made(begun.await.map_err(lost)??)
}

async fn abort_import(
    State(node): Shared,
    Segment(text): Segment,
    query: Result<Query<ImportQuery>, QueryRejection>,
) -> Answer {
    let (name, ImportQuery { lineage }) = (name(&text)?, valid(query)?);
    let pool = node.pool_of(&name).await?;
    pool.abort_import(&name, lineage).await?;
    ok(Done {})
}

async fn publish(
    State(node): Shared,
    Segment(text): Segment,
    query: Result<Query<ImportQuery>, QueryRejection>,
) -> Answer {
    let (name, ImportQuery { lineage }) = (name(&text)?, valid(query)?);
    ok(node.pool_of(&name).await?.publish(&name, lineage).await?)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn the_description_lists_exactly_the_routes() {
        let pairs = |pairs: Vec<(&'static str, &'static str)>| BTreeSet::from_iter(pairs);
        let described = archipelago_api::openapi::operations();
        let described = described.iter().map(|it| (it.path, it.method)).collect();
        let served = routes().into_iter();
        let served = served.map(|(path, method, _)| (path, method)).collect();
        assert_eq!(pairs(described), pairs(served));
    }

    #[test]
    fn what_is_served_is_what_the_types_give() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        let body = runtime.block_on(async {
            let response = openapi().await;
            axum::body::to_bytes(response.into_body(), usize::MAX)
                .await
                .unwrap()
        });
        let served: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(served, document());
        let operations = archipelago_api::openapi::operations();
        for operation in operations {
            let path = operation.path.replace('~', "~0").replace('/', "~1");
            let pointer = format!("/paths/{path}/{}", operation.method);
            assert!(served.pointer(&pointer).is_some(), "{pointer}");
        }
    }
}
